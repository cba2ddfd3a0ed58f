"""A libvirt host as a value: what its two capability documents say of guests that could run there.

``virsh capabilities`` (libvirt ``docs/formatcaps.rst``) has the host and the machine types,
``virsh domcapabilities`` (``docs/formatdomaincaps.rst``) what one QEMU with one accelerator can
show a guest.  The second is the honest one about the CPU: the first describes the silicon.
"""

import msgspec
from lxml import etree

from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.cpu.readers.xml import parse
from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.domain import Domain
from isthmus.values import Value

_LIMIT = 256  # characters of a name that are kept


class LibvirtHost(Value, frozen=True):
    """What is known of a host.

    ``cpu`` is what its guests can be shown (``silicon``: of the processor itself), None where no
    document tells or libvirt's map of models here does not know the model: then ``unknown`` says
    why.  ``machines`` are the machine types that any emulator there offers, aliases as well, and
    ``kinds`` the types of domain; empty means not known.  ``models`` maps each CPU model that its
    libvirt knows to whether the host can show it.  ``transports`` are those of a migration.
    """

    name: str
    uuid: str = ""
    cpu: CpuModel | None = None
    silicon: CpuModel | None = None
    machines: frozenset[str] = frozenset()
    emulators: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    models: dict[str, bool] = msgspec.field(default_factory=dict)
    transports: frozenset[str] = frozenset()
    unknown: tuple[str, ...] = ()


def read_host_documents(
    capabilities: bytes | None, domain_capabilities: bytes | None, *, name: str
) -> LibvirtHost:
    """A host by its documents; either may be missing.

    :raises InputError: a document that is not well-formed, or another document.
    """
    host = LibvirtHost(name=name)
    unknown: list[str] = []
    if capabilities is not None:
        where = f"{name}: capabilities"
        root = _root(capabilities, "capabilities", where)
        silicon = _cpu(capabilities, name, where, unknown)
        host = host.replace(
            uuid=(root.findtext("host/uuid") or "").strip()[:_LIMIT],
            silicon=silicon,
            machines=_texts(root, "guest/arch//machine")
            | frozenset(
                str(machine.get("canonical"))[:_LIMIT]
                for machine in root.iterfind("guest/arch//machine")
                if machine.get("canonical")
            ),
            emulators=_texts(root, "guest/arch//emulator"),
            kinds=frozenset(
                str(domain.get("type"))[:_LIMIT] for domain in root.iterfind("guest/arch/domain")
            ),
            transports=_texts(root, "host/migration_features/uri_transports/uri_transport"),
        )
    if domain_capabilities is not None:
        where = f"{name}: domain capabilities"
        root = _root(domain_capabilities, "domainCapabilities", where)
        unknown = []  # what the better document knows is known
        host = host.replace(
            cpu=_cpu(domain_capabilities, name, where, unknown),
            kinds=host.kinds | _texts(root, "domain"),
            emulators=host.emulators | _texts(root, "path"),
            models={
                (model.text or "").strip()[:_LIMIT]: model.get("usable") != "no"
                for model in root.iterfind("cpu/mode[@name='custom']/model")
            },
        )
    return host.replace(cpu=host.cpu or host.silicon, unknown=tuple(unknown))


def machine_known(domain: Domain, host: LibvirtHost) -> bool | None:
    """Whether the host has the domain's machine type; None where that is not known."""
    if not host.machines or not domain.machine:
        return None
    return domain.machine in host.machines


def _cpu(data: bytes, name: str, where: str, unknown: list[str]) -> CpuModel | None:
    try:
        return read_libvirt(data, name=name, where=where)
    except InputError as error:
        unknown.append(error.message)
        return None


def _root(data: bytes, tag: str, where: str) -> etree._Element:
    root = parse(data, where=where)
    if root.tag != tag:
        raise InputError(
            f"{where}: a {str(root.tag)[:40]} document",
            remedy=f"virsh {'capabilities' if tag == 'capabilities' else 'domcapabilities'}",
        )
    return root


def _texts(root: etree._Element, path: str) -> frozenset[str]:
    return frozenset(
        text
        for element in root.iterfind(path)
        if (text := (element.text or "").strip()[:_LIMIT]) and text.isprintable()
    )
