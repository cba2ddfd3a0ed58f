"""A libvirt domain as a value: what of its XML decides whether, and how, it can move.

The XML may come from anybody who may define domains, so it is hostile: no entities, no DTD, bounded
size (:mod:`isthmus.cpu.readers.xml`), texts cut.  What is not named here is of no concern to a move
and is not kept.  Source of every element: libvirt ``docs/formatdomain.rst``.
"""

from collections.abc import Iterator

import msgspec
from lxml import etree

from isthmus.cpu.readers.xml import parse
from isthmus.errors import InputError
from isthmus.values import Value

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
MAX_TEXT = 512
"""Characters of any text that are kept: more than a path or a name needs."""
MAX_ITEMS = 4096
"""Devices, arguments or features of a kind that are read; a real domain has tens."""
MAX_BYTES = 16 << 20
"""The largest domain that is read; libvirt's own protocol carries no more than that."""


class WantedCpu(Value, frozen=True):
    """The ``<cpu>`` element: what the definition asks for, not yet what a guest is shown.

    ``mode`` is empty where the domain has no such element: then QEMU's default model is shown.
    ``migratable`` is the attribute of ``host-passthrough``, empty where it is left to libvirt
    (``on`` since 6.5 where QEMU knows it).  ``features`` maps libvirt's names to policies.
    ``phys_bits_mode`` and ``phys_bits`` are those of ``<maxphysaddr>``.
    """

    mode: str = ""
    check: str = ""
    migratable: str = ""
    model: str = ""
    fallback: str = ""
    vendor: str = ""
    vendor_id: str = ""
    features: dict[str, str] = msgspec.field(default_factory=dict)
    phys_bits_mode: str = ""
    phys_bits: int | None = None
    cache_mode: str = ""

    @property
    def demands(self) -> frozenset[str]:
        """The features that a host must show the guest."""
        return frozenset(n for n, policy in self.features.items() if policy in {"require", "force"})


class Disk(Value, frozen=True):
    """One disk: ``target`` as the guest's bus names it, ``kind`` of its source, and where that is.

    ``device`` is ``disk``, ``cdrom``, ``floppy`` or ``lun``; an empty drive has no ``source``.
    """

    target: str
    kind: str
    device: str = "disk"
    source: str = ""
    cache: str = ""
    bus: str = ""
    readonly: bool = False
    shared: bool = False
    transient: bool = False

    @property
    def local(self) -> bool:
        """Whether its content lies in a file or on a device of the host, for all the XML tells."""
        return self.kind in {"file", "block", "dir"} and bool(self.source)

    @property
    def written(self) -> bool:
        """Whether the guest can change what is on it."""
        return not self.readonly and self.device not in {"cdrom", "floppy"}


class Device(Value, frozen=True):
    """A device that may stand in a move's way: its element, its kind, and what else decides.

    ``kind`` is the ``type`` (of a ``hostdev`` in mode ``subsystem``: pci, usb, mdev, scsi …),
    ``role`` that of an ``shmem``, ``driver`` what serves it, ``teaming`` that of an interface that
    is unplugged for a move, ``source`` where on the host it comes from.
    """

    element: str
    kind: str
    subject: str
    role: str = ""
    driver: str = ""
    teaming: str = ""
    source: str = ""


class Timer(Value, frozen=True):
    """A timer of ``<clock>``; ``frequency`` in Hz, None where it is not given."""

    name: str
    present: str = ""
    frequency: int | None = None
    mode: str = ""


class Domain(Value, frozen=True):
    """What a domain's XML says that matters to a move.

    ``kind`` is libvirt's type (``kvm``, ``qemu`` …).  ``memory_mib`` is the memory at boot;
    ``backing`` holds words of ``<memoryBacking>`` (``hugepages``, ``locked``, ``memfd``, ``shared``
    …); ``pinned`` says that vCPUs or memory are bound to certain CPUs or nodes of the host.
    ``enlightenments`` are those of ``<hyperv>`` that are on, ``kvm_features`` the states of
    ``<kvm>``; ``confidential`` the type of ``<launchSecurity>``.  ``arguments`` go to QEMU's
    command line as they are.  ``consoles`` are files of the host with what the guest printed;
    ``agent``, ``panic`` and ``iommu`` tell of a channel for the guest's agent, of panic devices by
    their models, and of an emulated IOMMU.
    """

    name: str
    uuid: str = ""
    kind: str = ""
    arch: str = ""
    machine: str = ""
    emulator: str = ""
    vcpus: int = 1
    memory_mib: int = 0
    cpu: WantedCpu = WantedCpu()
    clock_offset: str = ""
    timers: tuple[Timer, ...] = ()
    disks: tuple[Disk, ...] = ()
    devices: tuple[Device, ...] = ()
    backing: tuple[str, ...] = ()
    pinned: bool = False
    enlightenments: tuple[str, ...] = ()
    kvm_features: dict[str, str] = msgspec.field(default_factory=dict)
    spinlock: str = ""
    confidential: str = ""
    arguments: tuple[str, ...] = ()
    consoles: tuple[str, ...] = ()
    agent: bool = False
    panic: tuple[str, ...] = ()
    iommu: bool = False


def read_domain(data: bytes, *, where: str) -> Domain:
    """The domain of a ``<domain>`` document.

    :raises InputError: too large, not well-formed, another document, or without a name.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: more than {MAX_BYTES >> 20} MiB", remedy="name a domain's XML")
    root = parse(data, where=where)
    if root.tag != "domain":
        raise InputError(
            f"{where}: a {str(root.tag)[:40]} document, no domain", remedy="virsh dumpxml DOMAIN"
        )
    name = _text(root, "name")
    if not name:
        raise InputError(f"{where}: a domain without a name", remedy="virsh dumpxml DOMAIN")
    kind = root.find("os/type")
    return Domain(
        name=name,
        uuid=_text(root, "uuid"),
        kind=_cut(root.get("type")),
        arch=_attribute(kind, "arch"),
        machine=_attribute(kind, "machine"),
        emulator=_text(root, "devices/emulator"),
        vcpus=_count(_text(root, "vcpu"), where, "vcpu") or 1,
        memory_mib=_memory_mib(root, where),
        cpu=_cpu(root.find("cpu"), where),
        clock_offset=_attribute(root.find("clock"), "offset"),
        timers=tuple(_timers(root, where)),
        disks=tuple(_disks(root)),
        devices=tuple(_devices(root)),
        backing=tuple(_backing(root)),
        pinned=_pinned(root),
        enlightenments=tuple(
            _cut(str(child.tag))
            for child in _children(root, "features/hyperv")
            if child.get("state") == "on"
        ),
        kvm_features={
            _cut(str(child.tag)): _cut(child.get("state"))
            for child in _children(root, "features/kvm")
        },
        spinlock=_attribute(root.find("features/pvspinlock"), "state"),
        confidential=_attribute(root.find("launchSecurity"), "type"),
        arguments=tuple(
            _cut(child.get("value"))
            for child in _children(root, f"{{{QEMU_NAMESPACE}}}commandline")
            if child.tag == f"{{{QEMU_NAMESPACE}}}arg"
        ),
        consoles=tuple(dict.fromkeys(_consoles(root))),
        agent=any(
            _cut(target.get("name")) == "org.qemu.guest_agent.0"
            for target in root.iterfind("devices/channel/target")
        ),
        iommu=root.find("devices/iommu") is not None,
        panic=tuple(
            _cut(child.get("model")) or "default"
            for child in _children(root, "devices")
            if child.tag == "panic"
        ),
    )


def _cpu(element: etree._Element | None, where: str) -> WantedCpu:
    if element is None:
        return WantedCpu()
    model, width = element.find("model"), element.find("maxphysaddr")
    features = {
        _cut(child.get("name")): _cut(child.get("policy")) or "require"
        for child in _some(element.iterchildren("feature"))
    }
    return WantedCpu(
        # libvirt: without a mode, an element with a model means custom, and exact is its match.
        mode=_cut(element.get("mode")) or ("custom" if model is not None else ""),
        check=_cut(element.get("check")),
        migratable=_cut(element.get("migratable")),
        model=_text(element, "model"),
        fallback=_attribute(model, "fallback"),
        vendor=_text(element, "vendor"),
        vendor_id=_attribute(model, "vendor_id"),
        features=features,
        phys_bits_mode=_attribute(width, "mode"),
        phys_bits=_count(_attribute(width, "bits"), where, "maxphysaddr"),
        cache_mode=_attribute(element.find("cache"), "mode"),
    )


def _disks(root: etree._Element) -> Iterator[Disk]:
    for disk in _some(root.iterfind("devices/disk")):
        source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
        places = ("file", "dev", "dir", "volume", "name")
        yield Disk(
            target=_attribute(target, "dev"),
            kind=_cut(disk.get("type")) or "file",
            device=_cut(disk.get("device")) or "disk",
            source=next((found for key in places if (found := _attribute(source, key))), ""),
            cache=_attribute(driver, "cache"),
            bus=_attribute(target, "bus"),
            readonly=disk.find("readonly") is not None,
            shared=disk.find("shareable") is not None,
            transient=disk.find("transient") is not None,
        )


def _devices(root: etree._Element) -> Iterator[Device]:
    for number, child in enumerate(_children(root, "devices")):
        element = str(child.tag)
        if element not in {"hostdev", "shmem", "filesystem", "interface", "tpm", "memory", "vsock"}:
            continue
        kind = _cut(child.get("type") or child.get("model"))
        if element == "hostdev" and child.get("mode") == "capabilities":
            kind = "capabilities"
        elif element in {"shmem", "tpm"}:
            kind = _attribute(child.find("model" if element == "shmem" else "backend"), "type")
        source = child.find("source")
        places = ("network", "bridge", "dev", "dir", "path", "name")
        yield Device(
            element=element,
            kind=kind,
            subject=_subject(child, element, number),
            role=_cut(child.get("role")),
            driver=_attribute(child.find("driver"), "type"),
            teaming=_attribute(child.find("teaming"), "type"),
            source=next((found for key in places if (found := _attribute(source, key))), "")
            or _text(child, "source/path"),
        )


def _subject(child: etree._Element, element: str, number: int) -> str:
    """How an operator finds the device: by its alias, its target, its address, or its place."""
    address = child.find("source/address")
    if element == "hostdev" and address is not None and address.get("slot"):
        words = [_cut(address.get(key)).removeprefix("0x") for key in ("domain", "bus", "slot")]
        return "{}:{}:{}.{}".format(*words, _cut(address.get("function")).removeprefix("0x") or "0")
    for path, key in (("target", "dev"), ("target", "dir"), ("mac", "address"), ("alias", "name")):
        if found := _attribute(child.find(path), key):
            return found
    if element == "hostdev" and address is not None and address.get("uuid"):
        return _cut(address.get("uuid"))
    return _cut(child.get("name")) or f"{element} {number}"


def _timers(root: etree._Element, where: str) -> Iterator[Timer]:
    for timer in _some(root.iterfind("clock/timer")):
        yield Timer(
            name=_cut(timer.get("name")),
            present=_cut(timer.get("present")),
            frequency=_count(_cut(timer.get("frequency")), where, "timer frequency"),
            mode=_cut(timer.get("mode")),
        )


def _backing(root: etree._Element) -> Iterator[str]:
    for child in _children(root, "memoryBacking"):
        yield _cut(child.get("type") or child.get("mode")) or _cut(str(child.tag))


def _pinned(root: etree._Element) -> bool:
    vcpu, memory = root.find("vcpu"), root.find("numatune/memory")
    return (
        bool(_attribute(vcpu, "cpuset"))
        or root.find("cputune/vcpupin") is not None
        or bool(_attribute(memory, "nodeset"))
        or root.find("numatune/memnode") is not None
    )


def _consoles(root: etree._Element) -> Iterator[str]:
    """Files on the host that hold what the guest prints on its serial console."""
    for child in _children(root, "devices"):
        if child.tag not in {"serial", "console"}:
            continue
        file = _attribute(child.find("source"), "path") if child.get("type") == "file" else ""
        if file or (file := _attribute(child.find("log"), "file")):
            yield file


_UNITS = {
    "b": 1, "bytes": 1, "kb": 10**3, "k": 1 << 10, "kib": 1 << 10, "mb": 10**6, "m": 1 << 20,
    "mib": 1 << 20, "gb": 10**9, "g": 1 << 30, "gib": 1 << 30, "tb": 10**12, "t": 1 << 40,
    "tib": 1 << 40,
}  # fmt: skip
"""libvirt's units of memory (``virScaleInteger``); without one, KiB are meant."""


def _memory_mib(root: etree._Element, where: str) -> int:
    amount = _count(_text(root, "memory"), where, "memory") or 0
    unit = (_attribute(root.find("memory"), "unit") or "KiB").lower()
    if unit not in _UNITS:
        raise InputError(f"{where}: memory in {unit[:20]!r}", remedy="use KiB, MiB or GiB")
    return amount * _UNITS[unit] >> 20


def _children(root: etree._Element, path: str) -> Iterator[etree._Element]:
    found = root.find(path)
    return _some(found.iterchildren(tag=etree.Element)) if found is not None else iter(())


def _some(elements: Iterator[etree._Element]) -> Iterator[etree._Element]:
    for number, element in enumerate(elements):
        if number >= MAX_ITEMS:
            raise InputError(
                f"a domain with more than {MAX_ITEMS} {str(element.tag)[:40]} elements",
                remedy="name a real domain's XML",
            )
        yield element


def _attribute(element: etree._Element | None, name: str) -> str:
    return "" if element is None else _cut(element.get(name))


def _text(root: etree._Element, path: str) -> str:
    return _cut(root.findtext(path))


def _cut(text: str | None) -> str:
    """A text of the document for a terminal: stripped, cut, in one line, without control signs."""
    plain = (text or "").strip()[:MAX_TEXT]
    return plain if plain.isprintable() else "".join(sign for sign in plain if sign.isprintable())


def _count(text: str, where: str, what: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InputError(f"{where}: {what} {text[:20]!r} is no number", remedy="mend the XML")
    return int(text)
