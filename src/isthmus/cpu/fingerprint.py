"""A host's fingerprint: what guests may come to depend on, kept to compare after an update.

CPUID of every kind of core, feature MSRs, microcode, kernel, firmware and the kernel's own verdicts
on the CPU's vulnerabilities.  A microcode update that set RRSBA made other projects' templates
stale; a fingerprint from before tells what an update changed.
"""

import os
from pathlib import Path

import msgspec

from isthmus.cpu.decode import decode
from isthmus.cpu.model import CpuidLeaf, CpuModel
from isthmus.cpu.probe import LogicalCpu, common, microcode, probe
from isthmus.errors import InputError
from isthmus.values import Value

SCHEMA_VERSION = 1
_DMI = Path("/sys/class/dmi/id")
_VULNERABILITIES = Path("/sys/devices/system/cpu/vulnerabilities")
_LIMIT = 4096

# Leaf, sub-leaf and register whose value is each logical CPU's own: APIC number, serial of the
# topology levels, node (Intel SDM vol. 2A, CPUID leaves 1, 0xB, 0x1F; AMD APM vol. 3, E.4.15).
_OWN = frozenset(
    {(1, "ebx"), (0xB, "edx"), (0x1F, "edx"), (0x80000026, "edx"), (0x8000001E, "eax"),
     (0x8000001E, "ebx"), (0x8000001E, "ecx")}
)  # fmt: skip
_STATE = {(1, 0, "ecx"): 1 << 27, (0xD, 0, "ebx"): 0xFFFFFFFF, (0xD, 1, "ebx"): 0xFFFFFFFF}
"""What the operating system sets: OSXSAVE, the sizes of enabled state."""


class Core(Value, frozen=True):
    """A kind of core: its answers, less what is each CPU's own, and the CPUs that give them."""

    cpus: tuple[int, ...]
    leaves: tuple[CpuidLeaf, ...]
    msrs: dict[int, int]


class Fingerprint(Value, frozen=True):
    """A host at one time.  Texts are empty where the machine does not tell."""

    host: str
    cores: tuple[Core, ...]
    microcode: int | None = None
    kernel: str = ""
    bios_vendor: str = ""
    bios_version: str = ""
    bios_date: str = ""
    vulnerabilities: dict[str, str] = msgspec.field(default_factory=dict)
    fingerprint: int = SCHEMA_VERSION


def take() -> Fingerprint:
    """This machine's fingerprint.

    :raises EnvironmentLackError: no x86, or the CPUID helper is not built.
    """
    return Fingerprint(
        host=os.uname().nodename,
        cores=kinds(probe()),
        microcode=microcode(),
        kernel=f"{os.uname().release} {os.uname().version}",
        bios_vendor=_text(_DMI / "bios_vendor"),
        bios_version=_text(_DMI / "bios_version"),
        bios_date=_text(_DMI / "bios_date"),
        vulnerabilities={
            path.name: _text(path) for path in sorted(_VULNERABILITIES.glob("*")) if path.is_file()
        },
    )


def kinds(cpus: tuple[LogicalCpu, ...]) -> tuple[Core, ...]:
    """Logical CPUs by what they answer: one kind, or several on a hybrid CPU."""
    found: dict[tuple[tuple[CpuidLeaf, ...], tuple[tuple[int, int], ...]], list[int]] = {}
    for cpu in cpus:
        key = tuple(map(_shared, cpu.leaves)), tuple(sorted(cpu.msrs.items()))
        found.setdefault(key, []).append(cpu.number)
    return tuple(
        Core(cpus=tuple(numbers), leaves=leaves, msrs=dict(msrs))
        for (leaves, msrs), numbers in found.items()
    )


def _shared(leaf: CpuidLeaf) -> CpuidLeaf:
    changes = {register: 0 for number, register in _OWN if number == leaf.leaf}
    for (number, subleaf, register), mask in _STATE.items():
        if (number, subleaf) == (leaf.leaf, leaf.subleaf):
            changes[register] = getattr(leaf, register) & ~mask
    return leaf.replace(**changes)


def cpu_of(fingerprint: Fingerprint, name: str, source: str) -> CpuModel:
    """The host's CPU: what every kind of core has; raises :class:`InputError` without leaf 0."""
    if not fingerprint.cores:
        raise InputError(f"{source}: no core in it", remedy="take the fingerprint again")
    return common(
        [
            decode(
                core.leaves,
                name=name,
                source=source,
                msrs=core.msrs,
                microcode=fingerprint.microcode,
            )
            for core in fingerprint.cores
        ]
    )


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode("utf-8", "replace").strip()
    except OSError:
        return ""
