"""What is at a libvirt connection: the host's CPU, and its domains as values."""

import contextlib
from collections.abc import Sequence
from urllib.parse import urlsplit

from isthmus.cpu.model import CpuModel
from isthmus.errors import HypervisorError, InputError, IsthmusError
from isthmus.hypervisor.libvirt.domain import Domain, read_domain
from isthmus.hypervisor.libvirt.host import LibvirtHost, read_host_documents
from isthmus.hypervisor.libvirt.virsh import Virsh
from isthmus.values import Value

SCHEMA_VERSION = 1
_ASKED = 8
"""Domains that are asked for their type."""


class Resident(Value, frozen=True):
    """A domain: as it would be started (``defined``), and as it runs, None where it does not."""

    defined: Domain
    running: Domain | None = None


class Inventory(Value, frozen=True):
    """A connection's host and domains; ``problems`` says which domains could not be read."""

    uri: str
    host: LibvirtHost
    domains: tuple[Resident, ...] = ()
    problems: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION


def host_name(uri: str) -> str:
    """What a URI's host is called: its host part, or the URI itself for a local one."""
    try:
        return urlsplit(uri).hostname or uri
    except ValueError as error:
        raise InputError(f"{uri}: not a URI: {error}", remedy="qemu+ssh://HOST/system") from error


def read_libvirt_host(virsh: Virsh, name: str, *, kind: str = "") -> LibvirtHost:
    """The host of a connection.

    :param kind: of the domains that count: ``kvm`` or ``qemu``, which is shown another CPU. If it
        is empty, that of the domains there.
    :raises HypervisorError: libvirt does not answer.
    """
    capabilities = virsh.capabilities().encode()
    host = read_host_documents(capabilities, None, name=name)
    kind = kind or _kind(virsh, host)
    try:
        shown = virsh.domain_capabilities(kind=kind).encode()
    except HypervisorError as error:  # a driver without them, as that of test://
        return host.replace(unknown=(*host.unknown, error.message))
    return read_host_documents(capabilities, shown, name=name)


def _kind(virsh: Virsh, host: LibvirtHost) -> str:
    """The type of the host's domains, if the first ones are of one; else KVM where it can."""
    there = set()
    for name in virsh.names()[:_ASKED]:
        with contextlib.suppress(IsthmusError):  # it may just have gone, or be of a strange form
            there.add(read_domain(virsh.live(name).encode(), where=name).kind)
    for kind in ("kvm", "qemu"):
        if there == {kind} or (there != {"qemu"} and kind in host.kinds):
            return kind
    return ""


def cpu_at(uri: str) -> CpuModel:
    """What guests can be shown at a URI.

    :raises InputError: its libvirt names no CPU, or one that is not known here.
    """
    host = read_libvirt_host(Virsh(uri), host_name(uri))
    if host.cpu is None:
        raise InputError(
            f"{uri}: {host.unknown[0] if host.unknown else 'libvirt names no CPU'}",
            remedy="give a dump of its CPU instead: `isthmus cpu show --help` lists the formats",
        )
    return host.cpu


def take_inventory(virsh: Virsh, *, name: str) -> Inventory:
    """The host and all its domains; one that cannot be read becomes a problem, not an end."""
    host = read_libvirt_host(virsh, name)
    domains, problems = [], []
    for domain in virsh.names():
        try:
            domains.append(_resident(virsh, domain))
        except IsthmusError as error:
            problems.append(f"{domain}: {error.message}")
    return Inventory(
        uri=virsh.uri or "", host=host, domains=tuple(domains), problems=tuple(problems)
    )


def _resident(virsh: Virsh, name: str) -> Resident:
    defined = read_domain(virsh.run("dumpxml", "--inactive", "--domain", name).encode(), where=name)
    if not virsh.state(name).active:
        return Resident(defined=defined)
    return Resident(defined=defined, running=read_domain(virsh.live(name).encode(), where=name))


def cpu_words(domain: Domain) -> str:
    """A domain's CPU in a word or two, for a table."""
    cpu = domain.cpu
    if not cpu.mode:
        return "QEMU's default"
    words: Sequence[str] = [cpu.model or cpu.mode]
    if cpu.vendor_id:
        words = [*words, f"({cpu.vendor_id})"]
    return " ".join(words)
