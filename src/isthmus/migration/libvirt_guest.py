"""What is known of a guest of libvirt before it moves, and the checks of its move."""

from typing import Any

import msgspec
from lxml import etree

from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.cpu.readers.xml import parse
from isthmus.divergence.evidence import GuestEvidence
from isthmus.hypervisor.libvirt.connection import Connection, binding, call
from isthmus.hypervisor.libvirt.incoming import Hop, hop_of
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

    :raises InputError: its XML has no CPU model.
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
        shown=read_libvirt(hop.born if hop is not None else xml, name=name, where=name),
        vcpus=int(root.findtext("vcpu") or 1),
        memory_mib=int(root.findtext("memory") or 0) >> 10,  # libvirt tells KiB
        hop=hop,
    )


def served(request: Request, facts: Facts) -> Service:
    """Who would translate for the guest there: only where the daemon's sockets are in reach."""
    return service(
        module=False,
        outside=request.options.translate is not False and not has_host(request.destination),
        avx="avx" in facts.shown.features,
        vcpus=facts.vcpus,
    )


async def judge(request: Request, facts: Facts, destination: Connection) -> Preflight:
    """All checks of the move; takes no step."""
    root = parse(facts.xml, where=f"the XML of {facts.name}")
    offered = await call(
        destination.handle.getDomainCapabilities,
        None, _attribute(root, "os/type", "arch"), None, root.get("type"), 0,
    )  # fmt: skip
    judged = preflight(
        facts.name,
        GuestEvidence(shown=facts.shown, vcpus=facts.vcpus, memory_mib=facts.memory_mib),
        request.source,
        read_libvirt(offered.encode(), name=request.destination, where=request.destination),
        translatable=served(request, facts).covered,
        accepted=request.accepted,
        hypervisor="tcg" if facts.emulated else "kvm",
    )
    return msgspec.structs.replace(judged, blocking=()) if request.force else judged


def _attribute(root: etree._Element, path: str, attribute: str) -> str | None:
    element = root.find(path)
    return None if element is None else element.get(attribute)
