"""From raw CPUID leaves to a CPU model.

Facts: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.  What trips decoders:

* Above its maximum basic leaf an Intel CPU answers with the data of the highest one, an AMD CPU
  with zeros; so a leaf above its range's maximum says nothing.
* AMD repeats most of leaf 1 EDX in 0x80000001 EDX.
* The hypervisor's range means what the hypervisor's signature says, and Centaur's 0xC0000000 range
  exists on Centaur's and Zhaoxin's CPUs only.
* Sub-features (SVM's, SGX's) mean nothing without their parent bit.
"""

import re
from collections.abc import Iterable, Mapping

from isthmus.cpu.features import FEATURES, Register, by_cpuid
from isthmus.cpu.model import CpuidLeaf, CpuModel, XsaveComponent
from isthmus.errors import InputError

# AMD APM vol. 3, E.4.2: bits of 0x80000001 EDX that repeat leaf 1 EDX.
REPEATED = 0x0183F3FF

_REGISTERS: tuple[Register, ...] = ("eax", "ebx", "ecx", "edx")
_KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"  # Linux Documentation/virt/kvm/x86/cpuid.rst
_HYPERV_SIGNATURE = b"Microsoft Hv"  # Hypervisor Top Level Functional Specification
_HYPERV_EBX = int.from_bytes(_HYPERV_SIGNATURE[:4], "little")
_KVM_LEAF = frozenset({0x40000001})
_HYPERV_LEAVES = frozenset({0x40000003, 0x40000004})
_PARENTS = {0x8000000A: "svm", 0x12: "sgx"}
_SUPERVISOR_COMPONENT = 1  # 0xD sub-leaf n ECX bit 0: kept by XSAVES only, no standard place
_MAX_COMPONENT = 62

Leaves = Mapping[tuple[int, int], CpuidLeaf]


def decode(
    leaves: Iterable[CpuidLeaf],
    *,
    name: str,
    source: str,
    msrs: Mapping[int, int] | None = None,
    microcode: int | None = None,
    unknown: Iterable[str] = (),
) -> CpuModel:
    """The model that the leaves of one logical CPU tell; the first of equal leaves counts.

    :param msrs: feature MSRs by index, where the source has them.
    :raises InputError: leaf 0 is missing or names no vendor.
    """
    found: dict[tuple[int, int], CpuidLeaf] = {}
    for leaf in leaves:
        found.setdefault((leaf.leaf, leaf.subleaf), leaf)
    if (0, 0) not in found:
        raise InputError(f"{source}: no CPUID leaf 0", remedy="name a whole dump of CPUID")
    basic = found[0, 0]
    vendor = _ascii(basic.ebx, basic.edx, basic.ecx)
    if vendor is None:
        raise InputError(f"{source}: CPUID leaf 0 names no vendor", remedy="name a whole dump")
    maxima = _maxima(found, vendor)
    valid = {place: leaf for place, leaf in found.items() if leaf.leaf <= maxima(leaf.leaf)}
    features = _features(valid)
    registers = dict(msrs or {})
    features |= _msr_features(registers, features)
    signature = valid.get((1, 0))
    family, model, stepping = numbers(signature.eax if signature else 0)
    widths = valid.get((0x80000008, 0))
    lacking = list(unknown)
    if widths is None:
        lacking.append("address widths")
    if not registers and features & {"arch-capabilities", "core-capability"}:
        lacking.append("feature MSRs")
    state = valid.get((0xD, 0))
    return CpuModel(
        name=name,
        source=source,
        vendor=vendor,
        family=family,
        model=model,
        stepping=stepping,
        brand=_brand(valid),
        features=features,
        level=basic.eax,
        xlevel=max(0, maxima(0x80000000)),
        phys_bits=(widths.eax & 0xFF) or None if widths else None,
        linear_bits=(widths.eax >> 8 & 0xFF) or None if widths else None,
        tsc_khz=_tsc_khz(valid),
        microcode=microcode,
        xcr0=state.eax | state.edx << 32 if state and "xsave" in features else None,
        xsave=_components(valid) if "xsave" in features else (),
        leaves=tuple(sorted(valid.values())),
        msrs=registers,
        unknown=tuple(lacking),
    )


def numbers(eax: int) -> tuple[int, int, int]:
    """Family, model and stepping from leaf 1 EAX.

    The extended numbers are added as Linux does (``arch/x86/lib/cpu.c``).
    """
    family = eax >> 8 & 0xF
    if family == 0xF:
        family += eax >> 20 & 0xFF
    model = eax >> 4 & 0xF
    if family >= 6:
        model |= eax >> 12 & 0xF0
    return family, model, eax & 0xF


def _ascii(*words: int) -> str | None:
    data = b"".join(word.to_bytes(4, "little") for word in words)
    return data.decode("ascii") if all(0x20 <= byte < 0x7F for byte in data) else None


class _Maxima:
    """The highest leaf of the range that a leaf lies in; -1 where the range does not exist."""

    def __init__(self, basic: int, hypervisor: int, extended: int, centaur: int) -> None:
        self._by_range = {0: basic, 4: hypervisor, 8: extended, 0xC: centaur}

    def __call__(self, leaf: int) -> int:
        return self._by_range.get(leaf >> 28, -1)


def _maxima(found: Leaves, vendor: str) -> _Maxima:
    def highest(start: int) -> int:
        leaf = found.get((start, 0))
        return leaf.eax if leaf and start <= leaf.eax <= start + 0xFFFF else -1

    hypervisor = -1
    if (head := found.get((0x40000000, 0))) is not None:
        signature = b"".join(word.to_bytes(4, "little") for word in (head.ebx, head.ecx, head.edx))
        if signature == _KVM_SIGNATURE:  # EAX 0 means 0x40000001 there
            hypervisor = max(head.eax, 0x40000001) if head.eax <= 0x4000FFFF else -1
        elif signature == _HYPERV_SIGNATURE and 0x40000004 <= head.eax <= 0x4000FFFF:
            hypervisor = head.eax
    centaur = highest(0xC0000000) if vendor in {"CentaurHauls", "  Shanghai  "} else -1
    return _Maxima(found[0, 0].eax, hypervisor, highest(0x80000000), centaur)


def _features(valid: Leaves) -> frozenset[str]:
    places = by_cpuid()
    features = set()
    head = valid.get((0x40000000, 0))
    foreign = _KVM_LEAF if head and head.ebx == _HYPERV_EBX else _HYPERV_LEAVES
    for (leaf, subleaf), answer in valid.items():
        if leaf in foreign:
            continue
        if leaf == 7 and subleaf and (7, 0) in valid and subleaf > valid[7, 0].eax:
            continue
        for register in _REGISTERS:
            value = getattr(answer, register)
            if (leaf, register) == (0x80000001, "edx"):
                value &= ~REPEATED
            while value:
                bit = value.bit_length() - 1
                value &= ~(1 << bit)
                if feature := places.get((leaf, subleaf, register, bit)):
                    features.add(feature)
    for leaf, parent in _PARENTS.items():
        if parent not in features:
            features -= {n for n in features if FEATURES[n].leaf == leaf}
    return frozenset(features)


def _msr_features(msrs: Mapping[int, int], features: frozenset[str]) -> frozenset[str]:
    return frozenset(
        name
        for name, feature in FEATURES.items()
        if feature.msr is not None
        and feature.bit is not None
        and msrs.get(feature.msr, 0) >> feature.bit & 1
        and features.issuperset(feature.requires)
    )


def _brand(valid: Leaves) -> str:
    data = b"".join(
        getattr(valid[leaf, 0], register).to_bytes(4, "little")
        for leaf in (0x80000002, 0x80000003, 0x80000004)
        if (leaf, 0) in valid
        for register in _REGISTERS
    )
    text = data.split(b"\0", 1)[0].decode("ascii", "replace")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r" +", " ", printable).strip()


def _components(valid: Leaves) -> tuple[XsaveComponent, ...]:
    return tuple(
        XsaveComponent(number=subleaf, size=answer.eax, offset=answer.ebx)
        for (leaf, subleaf), answer in sorted(valid.items())
        if leaf == 0xD
        and 2 <= subleaf <= _MAX_COMPONENT
        and answer.eax
        and not answer.ecx & _SUPERVISOR_COMPONENT
    )


def _tsc_khz(valid: Leaves) -> int | None:
    """TSC rate from leaf 0x15 (crystal times ratio), or as a hypervisor's 0x40000010 says."""
    clock = valid.get((0x15, 0))
    if clock and clock.eax and clock.ebx and clock.ecx:
        return clock.ecx * clock.ebx // clock.eax // 1000
    told = valid.get((0x40000010, 0))
    return told.eax or None if told else None
