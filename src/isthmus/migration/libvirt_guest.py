"""What is known of a guest of libvirt before it moves, and the checks of its move."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.cpu.readers.xml import parse
from isthmus.divergence.evidence import GuestEvidence
from isthmus.errors import RefusedError
from isthmus.hypervisor.libvirt.connection import Connection, binding, call
from isthmus.hypervisor.libvirt.domain import Domain, read_domain
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.incoming import Hop, hop_of
from isthmus.migration.libvirt_documents import host_at, move_between, offer_of
from isthmus.migration.libvirt_preflight import guest_facts, shown_cpu, with_domain_rules
from isthmus.migration.platforms import Request, has_host
from isthmus.migration.preflight import Preflight, preflight
from isthmus.translate.placement import Service, service
from isthmus.values import Value


class Facts(Value, frozen=True):
    """What is known of the guest.

    ``xml`` is what runs, ``moving`` the same in the form that libvirt gives for a move, and
    ``definition`` what it is started by, empty for a guest that has none.  ``shown`` is the CPU
    that it saw at boot; ``hop`` what the last move by hand left; ``disks``: one can be written.
    """

    xml: bytes
    moving: bytes
    definition: bytes
    name: str
    uuid: str
    emulated: bool
    disks: bool
    shown: CpuModel
    vcpus: int
    memory_mib: int
    hop: Hop | None = None

    @property
    def persistent(self) -> bool:
        """Whether it has a definition."""
        return bool(self.definition)


async def read_facts(domain: Any) -> Facts:
    """Read a running domain.

    :raises InputError: neither its XML nor its host tells what CPU it was shown.
    """
    libvirt = binding()
    name = await call(domain.name)
    xml = (await call(domain.XMLDesc, 0)).encode()
    secure = libvirt.VIR_DOMAIN_XML_SECURE
    moving = await call(domain.XMLDesc, secure | libvirt.VIR_DOMAIN_XML_MIGRATABLE)
    definition = ""
    if await call(domain.isPersistent):
        definition = await call(domain.XMLDesc, secure | libvirt.VIR_DOMAIN_XML_INACTIVE)
    root = parse(xml, where=f"the XML of {name}")
    hop = hop_of(xml)
    return Facts(
        xml=xml,
        moving=moving.encode(),
        definition=definition.encode(),
        name=name,
        uuid=await call(domain.UUIDString),
        emulated=root.get("type") == "qemu",
        disks=any(
            disk.get("device", "disk") in {"disk", "lun"} and disk.find("readonly") is None
            for disk in root.iterfind("devices/disk")
        ),
        shown=await _shown(domain, xml, name)
        if hop is None
        else read_libvirt(hop.born, name=name, where=name),
        vcpus=int(root.findtext("vcpu") or 1),
        memory_mib=int(root.findtext("memory") or 0) >> 10,  # libvirt tells KiB
        hop=hop,
    )


async def _shown(domain: Any, xml: bytes, name: str) -> CpuModel:
    """The CPU that the guest was shown when it booted; with the host's own, the host is asked."""
    asked = read_domain(xml, where=name)
    if asked.cpu.model:
        return read_libvirt(xml, name=name, where=name)
    here = Connection("", await call(domain.connect))
    host = await host_at(here, kind=asked.kind, arch=asked.arch, name=name)
    return shown_cpu(xml, host, where=name)


def by_hand(domain: Domain, vendor: str) -> Domain:
    """The domain as :func:`isthmus.hypervisor.libvirt.incoming.incoming_xml` writes it there.

    It states the maker that the guest is shown, and demands none of the host.
    """
    return domain.replace(cpu=domain.cpu.replace(vendor="", vendor_id=vendor))


def served(request: Request, facts: Facts) -> Service:
    """Who would translate for the guest there: only where the daemon's sockets are in reach."""
    return service(
        module=False,
        outside=request.options.translate is not False and not has_host(request.destination),
        avx="avx" in facts.shown.features,
        vcpus=facts.vcpus,
    )


def goes_by_hand(facts: Facts, verdict: Preflight) -> bool:
    """Whether Isthmus moves the guest itself, since libvirt would not."""
    return facts.hop is not None or verdict.needs_translation


def dialled(request: Request) -> str:
    """The host at which the stream of a move by hand is dialled; empty: a socket of this machine.

    It is that of the network which the destination is reached by.
    """
    for uri in (request.link, request.peer, request.destination):
        if host := urlsplit(uri).hostname if uri else None:
            return host
    return ""


_OF_THE_STREAM = frozenset({"libvirt-translated-in-clear", "libvirt-tls-missing"})


def require_live(request: Request) -> None:
    """Refuse what libvirt's own moves can do and those by hand cannot.

    :raises RefusedError: something of that is asked for.
    """
    wished = {
        "--postcopy": request.postcopy, "--parallel": request.parallel,
        "--copy-storage": request.copy_storage,
    }  # fmt: skip
    if impossible := [name for name, value in wished.items() if value]:
        raise RefusedError(
            f"{request.guest}: a translated guest is not moved with {', '.join(impossible)}",
            remedy="leave that out, or start the guest anew with a level (isthmus level --apply)",
        )


async def judge(
    request: Request, facts: Facts, source: Connection, destination: Connection
) -> Preflight:
    """All checks of the move; takes no step.

    :raises RefusedError: something is asked for that such a move cannot do.
    """
    running = read_domain(facts.xml, where=facts.name)
    defined = read_domain(facts.definition, where=facts.name) if facts.definition else None
    kind, arch = running.kind, running.arch
    here, there = await asyncio.gather(
        host_at(source, kind=kind, arch=arch, name=request.source),
        host_at(destination, kind=kind, arch=arch, name=request.destination),
    )
    move = await move_between(
        source,
        destination,
        await source.domain(facts.uuid),
        copies_all=request.copy_storage,
        tls=request.tls,
    )
    judged = preflight(
        facts.name,
        GuestEvidence(
            shown=facts.shown,
            vcpus=facts.vcpus,
            memory_mib=facts.memory_mib,
            facts=guest_facts(running),
        ),
        request.source,
        offer_of(there),
        translatable=served(request, facts).covered,
        accepted=request.accepted,
        hypervisor="tcg" if facts.emulated else "kvm",
    )
    if goes_by_hand(facts, judged):
        require_live(request)
        move = move.replace(carried="tcp" if dialled(request) else "socket")
    if judged.needs_translation:
        running = by_hand(running, facts.shown.vendor)
    # A guest that we have moved by hand has arguments of ours, and a CPU that is not its own.
    moved_before = facts.hop is not None
    judged = with_domain_rules(
        judged,
        running,
        None if moved_before else defined,
        here,
        there,
        move,
        accepted=request.accepted,
        only=_OF_THE_STREAM if moved_before else None,
    )
    judged = judged.replace(crosses=_makers_differ(here, there))
    return judged.replace(blocking=()) if request.force else judged


def _makers_differ(here: LibvirtHost, there: LibvirtHost) -> bool:
    return here.cpu is not None and there.cpu is not None and here.cpu.vendor != there.cpu.vendor
