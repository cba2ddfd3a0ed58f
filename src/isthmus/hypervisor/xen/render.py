"""A level as the ``cpuid=`` policy of an ``xl`` guest.

The list form of ``xl.cfg(5)`` writes each register as 32 characters, bit 31 first: ``x`` takes what
Xen shows by default, ``0`` and ``1`` force a bit.  Every feature that the level lacks is forced to
0, so are bits that nobody knows; what it has is left to Xen, which hides what it cannot give.
Maximum leaves are forced, since Xen refuses a guest whose leaves exceed the host's ("Failed to set
CPUID policy: leaf 80000000", met in the lab).

In a PV guest programs see the host's own CPUID unless the CPU can fault on it (Xen's documentation,
``docs/misc``, and seen in the lab): for them a policy is invisible.
"""

from isthmus.baseline.identity import AMD
from isthmus.baseline.level import Baseline
from isthmus.cpu.model import CpuModel
from isthmus.cpu.registers import DYNAMIC, feature_registers, signature, vendor_words, word
from isthmus.hypervisor.rendering import RenderedFile, Rendering

# Xen 4.17 xen/include/xen/lib/x86/cpu-policy.h: CPUID_GUEST_NR_BASIC, CPUID_GUEST_NR_EXTD.
MAX_BASIC = 0xD
MAX_EXTENDED = 0x80000021

# Leaves that Xen's guests have; a policy for others is refused or ignored.
_LEAVES = frozenset({1, 7, 0xD, 0x80000001, 0x80000007, 0x80000008, 0x80000021})


def policy(level: Baseline) -> tuple[str, ...]:
    """The entries of ``cpuid = [...]``."""
    model = level.model
    registers: dict[tuple[int, int], dict[str, str]] = {}

    def put(leaf: int, subleaf: int, register: str, bits: str) -> None:
        registers.setdefault((leaf, subleaf), {})[register] = bits

    if model.level:
        put(0, 0, "eax", _exact(min(model.level, MAX_BASIC)))
    if level.mixed:
        for register, value in vendor_words(model.vendor).items():
            put(0, 0, register, _exact(value))
        put(1, 0, "eax", _exact(signature(model.family, model.model, model.stepping)))
    deepest = _deepest(model)
    if not _above(model, 7):
        put(7, 0, "eax", _exact(deepest))
    for leaf, subleaf, register in feature_registers():
        if leaf in _LEAVES and not _above(model, leaf) and (leaf != 7 or subleaf <= deepest):
            place = (leaf, subleaf, register)
            value = word(model.features, place, amd=model.vendor == AMD)
            put(leaf, subleaf, register, _open(value | DYNAMIC.get(place, 0)))
    if model.xlevel:
        put(0x80000000, 0, "eax", _exact(min(model.xlevel, MAX_EXTENDED)))
    if model.phys_bits is not None and not _above(model, 0x80000008):
        put(0x80000008, 0, "eax", "x" * 24 + f"{model.phys_bits:08b}")
    return tuple(
        f"{_place(leaf, subleaf)}:" + ",".join(f"{r}={bits}" for r, bits in sorted(words.items()))
        for (leaf, subleaf), words in sorted(registers.items())
    )


def _deepest(model: CpuModel) -> int:
    """The last subleaf of leaf 7 in which the level has a feature.

    The guest is shown none behind it.  A policy cannot name those instead: what the host itself
    lacks ends the guest's start by "Missing leaf" (tools/libs/guest/xg_cpuid_x86.c).
    """
    amd = model.vendor == AMD
    places = (place for place in feature_registers() if place[0] == 7)
    return max((place[1] for place in places if word(model.features, place, amd=amd)), default=0)


def _above(model: CpuModel, leaf: int) -> bool:
    highest = model.highest("xlevel" if leaf >= 0x80000000 else "level")
    return highest is not None and leaf > highest


def _place(leaf: int, subleaf: int) -> str:
    return f"{leaf:#x},{subleaf:#x}" if leaf in {7, 0xD} else f"{leaf:#x}"


def _exact(value: int) -> str:
    return f"{value:032b}"


def _open(value: int) -> str:
    """``x`` where the level has the bit, 0 elsewhere."""
    return _exact(value).replace("1", "x")


def render(level: Baseline, name: str) -> Rendering:
    """The setting for a guest's configuration."""
    entries = ",\n".join(f'  "{entry}"' for entry in policy(level))
    notes = [
        "programs in a PV guest see the host's own CPUID unless its CPU can fault on CPUID",
    ]
    if level.mixed:
        notes.append(
            "Xen 4.22 takes no guest of the other maker any more; 4.17 and 4.20 do. A guest born "
            "on Intel needs its machine-check record rewritten in the stream on the way to AMD"
        )
    return Rendering(
        platform="xen",
        files=(
            RenderedFile(
                name="the guest's xl configuration",
                text=f"# {name}\ncpuid = [\n{entries}\n]\n",
            ),
        ),
        commands=("xl create GUEST.cfg   # counts from the guest's next start",),
        notes=tuple(notes),
    )
