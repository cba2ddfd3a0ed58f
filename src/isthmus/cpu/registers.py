"""Features as CPUID registers: the words that platforms take as masks, templates and featuresets.

A register is *of features* if the catalogue knows bits of it.  A bit of such a register that the
catalogue does not know announces something unknown, so it is treated as a feature nobody has.
"""

from collections.abc import Collection, Mapping

from isthmus.cpu.decode import REPEATED
from isthmus.cpu.features import FEATURES, Register, by_cpuid

Place = tuple[int, int, Register]
"""Leaf, sub-leaf and register."""

FEATURESET: tuple[Place, ...] = (
    (1, 0, "edx"), (1, 0, "ecx"), (0x80000001, 0, "edx"), (0x80000001, 0, "ecx"), (0xD, 1, "eax"),
    (7, 0, "ebx"), (7, 0, "ecx"), (0x80000007, 0, "edx"), (0x80000008, 0, "ebx"), (7, 0, "edx"),
    (7, 1, "eax"), (0x80000021, 0, "eax"), (7, 1, "ebx"), (7, 2, "edx"), (7, 1, "ecx"),
    (7, 1, "edx"),
)  # fmt: skip
"""The words of Xen 4.17's featureset (Xen ``xen/include/public/arch-x86/cpufeatureset.h``)."""

# Bits that the hypervisor, the APIC or the guest's own kernel sets: OSXSAVE and "hypervisor
# present"; APIC enabled and several threads in a package; OSPKE (Intel SDM vol. 2A, CPUID leaves
# 1 and 7; bit 31 of leaf 1 ECX is AMD's and every hypervisor's, APM vol. 3, E.3.2).
DYNAMIC: Mapping[Place, int] = {
    (1, 0, "ecx"): 1 << 27 | 1 << 31,
    (1, 0, "edx"): 1 << 9 | 1 << 28,
    (7, 0, "ecx"): 1 << 4,
}

# Registers of features that are numbers or belong to the hypervisor's own range are left out.
_SKIPPED_LEAVES = frozenset({6, 0xA, 0x14, 0x8000000A, 0x8000001F})


def feature_registers() -> tuple[Place, ...]:
    """The registers of features that guests are shown, in order."""
    places = {
        (leaf, subleaf, register)
        for leaf, subleaf, register, _ in by_cpuid()
        if not 0x40000000 <= leaf < 0x80000000 and leaf < 0xC0000000 and leaf not in _SKIPPED_LEAVES
    }
    return tuple(sorted(places))


def word(features: Collection[str], place: Place, *, amd: bool) -> int:
    """The register's value for a set of features.

    :param amd: repeat leaf 1 EDX in 0x80000001 EDX, as AMD's CPUs do (APM vol. 3, E.4.2).
    """
    value = 0
    for name in features:
        feature = FEATURES.get(name)
        if feature is None or feature.bit is None:
            continue
        if (feature.leaf, feature.subleaf or 0, feature.register) == place:
            value |= 1 << feature.bit
    if amd and place == (0x80000001, 0, "edx"):
        value |= word(features, (1, 0, "edx"), amd=False) & REPEATED
    return value


# Intel SDM vol. 1, 13.1; AMD APM vol. 2, 11.5.2: bits of XCR0 and the feature that has the state.
_STATES: Mapping[int, str] = {
    2: "avx", 3: "mpx", 4: "mpx", 5: "avx512f", 6: "avx512f", 7: "avx512f", 9: "pku",
    17: "amx-tile", 18: "amx-tile",
}  # fmt: skip


def xcr0(features: Collection[str]) -> int:
    """The state components that a CPU with these features has, as CPUID 0xD EAX shows them."""
    states = {bit for bit, name in _STATES.items() if name in features} | {0, 1}
    return sum(1 << bit for bit in states)


def vendor_words(vendor: str) -> dict[Register, int]:
    """Leaf 0's EBX, EDX and ECX for a vendor of 12 characters."""
    data = vendor.encode("ascii")
    ebx, edx, ecx = (int.from_bytes(data[start : start + 4], "little") for start in (0, 4, 8))
    return {"ebx": ebx, "edx": edx, "ecx": ecx}


def signature(family: int, model: int, stepping: int) -> int:
    """Leaf 1 EAX for these numbers (Intel SDM vol. 2A, CPUID, figure 3-6)."""
    base = min(family, 0xF)
    return (
        (family - base) << 20
        | (model >> 4 & 0xF) << 16
        | base << 8
        | (model & 0xF) << 4
        | stepping & 0xF
    )
