"""What the rules of :mod:`isthmus.hypervisor.libvirt.rules` ask of a domain, two hosts and a move.

Each relation yields a hit for every subject it holds for.  What is not known yields a hit that is
not ``sure``: the rule says what that means.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from isthmus.baseline.identity import maker
from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import VENDORS
from isthmus.hypervisor.libvirt.domain import Device, Disk, Domain
from isthmus.hypervisor.libvirt.host import LibvirtHost, machine_known
from isthmus.hypervisor.rules import Hit
from isthmus.values import Value

_SAFE_CACHES = frozenset({"none", "directsync"})
# libvirt qemuMigrationSrcIsAllowedHostdev: usb devices may be left behind, an interface in a team
# with a virtual one is unplugged for the move.
_LEFT_BEHIND = "usb"


class Move(Value, frozen=True):
    """How a domain is to be moved.

    ``copies``: the targets of disks that are copied with it (``--copy-storage-all`` means all of
    them: ``copies_all``).  ``shared``: paths of which it is known that both hosts see the same
    storage there.  ``tls``: whether the stream is encrypted by QEMU itself, ``tunnelled`` whether
    it goes through the daemons' connection.  ``tls_there``: whether the destination has the
    certificates for that, ``snapshots``: how many the domain has, None where unknown.
    ``carried``: what the stream goes by: ``libvirt``'s own way, or a ``socket`` of this machine or
    ``tcp`` where Isthmus moves the guest itself.
    """

    copies: frozenset[str] = frozenset()
    copies_all: bool = False
    shared: frozenset[str] = frozenset()
    tls: bool = False
    tunnelled: bool = False
    tls_there: bool | None = None
    snapshots: int | None = None
    libvirt_here: tuple[int, ...] = ()
    libvirt_there: tuple[int, ...] = ()
    carried: Literal["libvirt", "socket", "tcp"] = "libvirt"


Relation = Callable[[Domain, LibvirtHost, LibvirtHost, Move], Iterator[Hit]]


def _same_host(_: Domain, here: LibvirtHost, there: LibvirtHost, _move: Move) -> Iterator[Hit]:
    if here.uuid and here.uuid == there.uuid:
        yield Hit(subject=there.name, evidence=f"host UUID {there.uuid} on both")


def _mode(name: str) -> Relation:
    """The CPU is the host's own by this mode, and the hosts' CPUs differ (or are not known)."""

    def relation(domain: Domain, here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
        differs = _differ(here.cpu, there.cpu)
        if domain.cpu.mode == name and differs is not False:
            yield Hit(
                subject=name,
                evidence=_told_difference(here, there),
                sure=differs is not None,
            )

    return relation


def _mode_alike(domain: Domain, here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    modes = {"host-passthrough", "maximum", "host-model"}
    if domain.cpu.mode in modes and _differ(here.cpu, there.cpu) is False:
        yield Hit(subject=domain.cpu.mode, evidence="the same features and maker on both hosts")


def _not_migratable(
    domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move
) -> Iterator[Hit]:
    if domain.cpu.migratable == "off":
        yield Hit(subject=domain.cpu.mode, evidence="migratable='off'")


def _no_cpu(domain: Domain, here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    if not domain.cpu.mode:
        mixed = _mixed(here, there)
        if mixed is not False:
            yield Hit(subject="cpu", evidence="no <cpu> element", sure=mixed is not None)


def _vendor_open(domain: Domain, here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    cpu = domain.cpu
    if cpu.mode == "custom" and cpu.model and not cpu.vendor_id and domain.kind == "kvm":
        mixed = _mixed(here, there)
        if mixed is not False:
            yield Hit(
                subject="vendor_id",
                evidence=f"model {cpu.model} without vendor_id",
                sure=mixed is not None,
            )


def _vendor_demanded(
    domain: Domain, _here: LibvirtHost, there: LibvirtHost, _: Move
) -> Iterator[Hit]:
    wanted = domain.cpu.vendor
    if not wanted:
        return
    theirs = there.cpu.vendor if there.cpu is not None else ""
    known = bool(theirs)
    if theirs != VENDORS.get(wanted, wanted):
        yield Hit(
            subject=wanted,
            evidence=f"<vendor>{wanted}</vendor>",
            sure=known,
        )


def _model_unknown(
    domain: Domain, _here: LibvirtHost, there: LibvirtHost, _: Move
) -> Iterator[Hit]:
    model = domain.cpu.model
    if model and there.models and model not in there.models:
        yield Hit(subject=model, evidence="not in its domain capabilities")


def _clock_demands(
    domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move
) -> Iterator[Hit]:
    stated = any(timer.name == "tsc" and timer.frequency for timer in domain.timers)
    if "invtsc" in domain.cpu.demands and not stated:
        yield Hit(subject="invtsc", evidence="invtsc required, no <timer name='tsc' frequency=…>")


def _clock_rate(domain: Domain, _here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    for timer in domain.timers:
        if timer.name != "tsc" or not timer.frequency:
            continue
        rate = there.silicon.tsc_khz if there.silicon is not None else None
        # KVM takes a rate within 250 ppm as its own (Linux arch/x86/kvm/x86.c, tsc_tolerance_ppm).
        if rate is None or abs(timer.frequency - rate * 1000) > rate * 1000 * 250e-6:
            yield Hit(
                subject="tsc",
                evidence=f"stated {timer.frequency} Hz, there"
                f" {f'{rate} kHz' if rate else 'not known'}",
                sure=rate is not None,
            )


def _enlightened(word: str) -> Relation:
    def relation(domain: Domain, here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
        mixed = _mixed(here, there)
        if word in domain.enlightenments and mixed is not False:
            yield Hit(
                subject=word, evidence=f"<hyperv><{word} state='on'/>", sure=mixed is not None
            )

    return relation


def _machine(domain: Domain, _here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    known = machine_known(domain, there)
    if known is not True and domain.machine:
        yield Hit(
            subject=domain.machine,
            evidence=f"{there.name} has {len(there.machines)} machine types"
            if there.machines
            else "its machine types are not known",
            sure=known is not None,
        )


def _kind(domain: Domain, _here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    if there.kinds and domain.kind not in there.kinds:
        yield Hit(subject=domain.kind, evidence=f"it runs {', '.join(sorted(there.kinds))}")


def _emulator(domain: Domain, _here: LibvirtHost, there: LibvirtHost, _: Move) -> Iterator[Hit]:
    if domain.emulator and there.emulators and domain.emulator not in there.emulators:
        yield Hit(
            subject=domain.emulator, evidence=f"there: {', '.join(sorted(there.emulators)[:3])}"
        )


def _older(_: Domain, _here: LibvirtHost, _there: LibvirtHost, move: Move) -> Iterator[Hit]:
    if move.libvirt_here and move.libvirt_there and move.libvirt_there < move.libvirt_here:
        words = [".".join(map(str, version)) for version in (move.libvirt_here, move.libvirt_there)]
        yield Hit(subject="libvirt", evidence=f"{words[0]} here, {words[1]} there")


def _disks(wanted: Callable[[Disk, Move], bool | None], value: str = "source") -> Relation:
    def relation(
        domain: Domain, _here: LibvirtHost, _there: LibvirtHost, move: Move
    ) -> Iterator[Hit]:
        for disk in domain.disks:
            held = wanted(disk, move)
            if held is not False:
                yield Hit(
                    subject=disk.target or disk.source,
                    evidence=f"{disk.device} {disk.kind} {getattr(disk, value)}".strip(),
                    values={"source": disk.source},
                    sure=held is not None,
                )

    return relation


def _local_disk(disk: Disk, move: Move) -> bool | None:
    """Whether its content would be missing there; None: a local path may still be shared."""
    if not (disk.local and disk.written) or disk.kind == "block" or _goes_along(disk, move):
        return False
    return True if disk.kind == "dir" else None


def _block_disk(disk: Disk, move: Move) -> bool | None:
    """Whether it is a device of the host; None: both hosts may well see the same one."""
    here = disk.kind == "block" and disk.written and bool(disk.source)
    return None if here and not _goes_along(disk, move) else False


def _goes_along(disk: Disk, move: Move) -> bool:
    # libvirt copies no read-only and no shareable disk, not even with --copy-storage-all.
    copied = disk.target in move.copies or (
        move.copies_all and disk.written and not disk.shared and bool(disk.source)
    )
    return copied or _under(disk.source, move.shared)


def _under(path: str, shared: frozenset[str]) -> bool:
    """Whether the path is one of the shared ones or lies below one; no ``..`` talks its way in."""
    parts = path.split("/")
    if ".." in parts:
        return False
    return any(
        parts[: len(base.rstrip("/").split("/"))] == base.rstrip("/").split("/") for base in shared
    )


def _medium(disk: Disk, move: Move) -> bool | None:
    if not disk.local or disk.written or _under(disk.source, move.shared):
        return False
    return None


def _cached(disk: Disk, move: Move) -> bool | None:
    if not disk.written or disk.shared or disk.target in move.copies or move.copies_all:
        return False
    # Without the attribute QEMU writes back.
    return bool(disk.source) and disk.cache not in _SAFE_CACHES and disk.kind != "network"


def _devices(element: str, wanted: Callable[[Device], bool]) -> Relation:
    def relation(domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move) -> Iterator[Hit]:
        for device in domain.devices:
            if device.element == element and wanted(device):
                shown = [device.kind, device.driver, device.role, device.source]
                yield Hit(
                    subject=device.subject,
                    evidence=f"<{element}> {' '.join(word for word in shown if word)}".strip(),
                    values={"kind": device.kind, "source": device.source},
                )

    return relation


def _backing(*words: str) -> Relation:
    def relation(domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move) -> Iterator[Hit]:
        for word in domain.backing:
            if word in words:
                yield Hit(subject=word, evidence="<memoryBacking>")

    return relation


def _pinned(domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move) -> Iterator[Hit]:
    if domain.pinned:
        yield Hit(subject="pinning", evidence="<cputune>, <numatune> or cpuset")


def _confidential(
    domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move
) -> Iterator[Hit]:
    if domain.confidential:
        yield Hit(subject=domain.confidential, evidence="<launchSecurity>")


def _arguments(cpu: bool) -> Relation:
    def relation(domain: Domain, _here: LibvirtHost, _there: LibvirtHost, _: Move) -> Iterator[Hit]:
        said = domain.arguments
        if said and (("-cpu" in said) is cpu):
            yield Hit(subject="qemu:commandline", evidence=" ".join(said)[:200])

    return relation


def _snapshots(_: Domain, _here: LibvirtHost, _there: LibvirtHost, move: Move) -> Iterator[Hit]:
    if move.snapshots:
        yield Hit(subject="snapshots", evidence=f"{move.snapshots} of them")


def _tls_missing(_: Domain, _here: LibvirtHost, _there: LibvirtHost, move: Move) -> Iterator[Hit]:
    if move.tls and move.tls_there is not True:
        yield Hit(subject="tls", evidence="asked for", sure=move.tls_there is False)


def _in_clear(_: Domain, _here: LibvirtHost, _there: LibvirtHost, move: Move) -> Iterator[Hit]:
    if move.carried == "libvirt" and not (move.tls or move.tunnelled):
        yield Hit(subject="tls", evidence="neither --tls nor --tunnelled")


def _in_clear_by_hand(
    _: Domain, _here: LibvirtHost, _there: LibvirtHost, move: Move
) -> Iterator[Hit]:
    if move.carried == "tcp" and not move.tls:
        yield Hit(subject="tls", evidence="over TCP, without --tls")


def _differ(one: CpuModel | None, other: CpuModel | None) -> bool | None:
    """Whether two hosts show guests different CPUs; None where that is not known."""
    if one is None or other is None:
        return None
    return (one.vendor, one.features) != (other.vendor, other.features)


def _told_difference(here: LibvirtHost, there: LibvirtHost) -> str:
    if here.cpu is None or there.cpu is None:
        return "the CPUs of the hosts are not both known"
    lost = sorted(here.cpu.features - there.cpu.features)
    words = [f"{here.cpu.vendor} here, {there.cpu.vendor} there"]
    if lost:
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        words.append(f"there is no {', '.join(lost[:8])}{more}")
    return "; ".join(words)


def _mixed(here: LibvirtHost, there: LibvirtHost) -> bool | None:
    if here.cpu is None or there.cpu is None or not (here.cpu.vendor and there.cpu.vendor):
        return None
    return maker(here.cpu.vendor) != maker(there.cpu.vendor)


RELATIONS: dict[str, Relation] = {
    "same-host": _same_host,
    "host-passthrough": _mode("host-passthrough"),
    "maximum": _mode("maximum"),
    "host-model": _mode("host-model"),
    "host-cpu-alike": _mode_alike,
    "not-migratable": _not_migratable,
    "no-cpu": _no_cpu,
    "vendor-open": _vendor_open,
    "vendor-demanded": _vendor_demanded,
    "model-unknown": _model_unknown,
    "steady-tsc": _clock_demands,
    "tsc-rate": _clock_rate,
    "evmcs": _enlightened("evmcs"),
    "machine-missing": _machine,
    "kind-missing": _kind,
    "emulator-elsewhere": _emulator,
    "libvirt-older": _older,
    "storage-local": _disks(_local_disk),
    "storage-device": _disks(_block_disk),
    "medium-local": _disks(_medium),
    "cache-unsafe": _disks(_cached, "cache"),
    "disk-transient": _disks(lambda disk, _: disk.transient),
    "disk-on-host-device": _disks(lambda disk, _: disk.kind in {"nvme", "vhostuser", "vhostvdpa"}),
    "hostdev": _devices(
        "hostdev", lambda d: d.kind not in {_LEFT_BEHIND, "capabilities"} and d.teaming == ""
    ),
    "hostdev-capabilities": _devices("hostdev", lambda d: d.kind == "capabilities"),
    "hostdev-usb": _devices("hostdev", lambda d: d.kind == _LEFT_BEHIND),
    "hostdev-teamed": _devices("hostdev", lambda d: d.teaming == "transient"),
    "interface-hostdev": _devices(
        "interface", lambda d: d.kind == "hostdev" and d.teaming != "transient"
    ),
    "interface-vdpa": _devices("interface", lambda d: d.kind == "vdpa"),
    "interface-vhostuser": _devices("interface", lambda d: d.kind == "vhostuser"),
    "interface-there": _devices("interface", lambda d: d.kind in {"network", "bridge", "direct"}),
    "shmem": _devices("shmem", lambda d: d.role != "master"),
    "filesystem-virtiofs": _devices("filesystem", lambda d: d.driver == "virtiofs"),
    "filesystem-9p": _devices("filesystem", lambda d: d.driver not in {"virtiofs", "mtp"}),
    "tpm-passthrough": _devices("tpm", lambda d: d.kind == "passthrough"),
    "tpm-emulator": _devices("tpm", lambda d: d.kind == "emulator"),
    "memory-device": _devices("memory", lambda d: d.kind in {"nvdimm", "virtio-pmem", "sgx-epc"}),
    "memory-hugepages": _backing("hugepages"),
    "memory-locked": _backing("locked"),
    "pinned": _pinned,
    "confidential": _confidential,
    "arguments-cpu": _arguments(True),  # noqa: FBT003
    "arguments": _arguments(False),  # noqa: FBT003
    "snapshots": _snapshots,
    "tls-missing": _tls_missing,
    "in-clear": _in_clear,
    "in-clear-by-hand": _in_clear_by_hand,
}
"""Every relation that a rule may name."""
