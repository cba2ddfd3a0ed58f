"""Firecracker's CPU fingerprints and templates: CPUID and MSRs as bitmaps in JSON.

Format: firecracker ``docs/cpu_templates/cpu-templates.md`` and the fingerprints that
``cpu-template-helper fingerprint dump`` writes.  A bitmap is ``0b`` and digits 0, 1, or x where a
template leaves the host's bit; a document with an x is a template, not a CPU, and is refused.
"""

from typing import Any

from isthmus.cpu.decode import decode
from isthmus.cpu.model import CpuidLeaf, CpuModel
from isthmus.errors import InputError
from isthmus.values import Value, from_json

_REGISTERS = ("eax", "ebx", "ecx", "edx")


class _Modifier(Value, frozen=True):
    register: str
    bitmap: str


class _Cpuid(Value, frozen=True):
    leaf: str
    subleaf: str
    modifiers: tuple[_Modifier, ...]


class _Msr(Value, frozen=True):
    addr: str
    bitmap: str


class _Config(Value, frozen=True):
    cpuid_modifiers: tuple[_Cpuid, ...]
    msr_modifiers: tuple[_Msr, ...] = ()


class _Fingerprint(Value, frozen=True):
    guest_cpu_config: _Config
    microcode_version: str = "0x0"
    kernel_version: str = ""


def is_firecracker(document: dict[str, Any]) -> bool:
    """Whether a JSON object looks like a fingerprint or a template."""
    return "guest_cpu_config" in document or "cpuid_modifiers" in document


def read_firecracker(data: bytes, *, name: str, where: str) -> CpuModel:
    """The CPU that a guest saw when the fingerprint was taken.

    :raises InputError: not a fingerprint, or a template that leaves bits to the host.
    """
    fingerprint = from_json(data, _Fingerprint, where=where)
    config = fingerprint.guest_cpu_config
    leaves = []
    for entry in config.cpuid_modifiers:
        registers = {modifier.register: modifier.bitmap for modifier in entry.modifiers}
        if unknown := registers.keys() - set(_REGISTERS):
            raise InputError(
                f"{where}: {min(unknown)[:20]!r} is no CPUID register", remedy="mend the file"
            )
        leaves.append(
            CpuidLeaf(
                leaf=_number(entry.leaf, where, bits=32),
                subleaf=_number(entry.subleaf, where, bits=32),
                **{r: _number(registers.get(r, "0"), where, bits=32) for r in _REGISTERS},
            )
        )
    msrs = {
        _number(msr.addr, where, bits=32): _number(msr.bitmap, where, bits=64)
        for msr in config.msr_modifiers
    }
    return decode(
        leaves,
        name=name,
        source=where,
        msrs=msrs,
        microcode=_number(fingerprint.microcode_version, where, bits=64) or None,
    )


def _number(text: str, where: str, *, bits: int) -> int:
    short = text if len(text) <= 70 else text[:67] + "..."
    if text.startswith("0b") and "x" in text:
        raise InputError(
            f"{where}: {short!r} leaves bits to the host: a template, not a CPU",
            remedy="name a fingerprint",
        )
    try:
        number = int(text, 0) if len(text) <= 70 else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << bits:
        raise InputError(f"{where}: {short!r} is no number of {bits} bits", remedy="mend the file")
    return number
