"""What lies between a guest's CPU and its destination's as a whole.

Differences that no single feature bit tells.  Rules name these relations; each gives the subjects
it holds for, with evidence.
"""

from collections.abc import Callable, Iterator, Mapping

from isthmus.baseline.identity import maker
from isthmus.baseline.level import HYPERCALLS
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.condition import Situation
from isthmus.values import Value

# Intel SDM vol. 1, 13.1 and AMD APM vol. 2, 11.5: the features whose state has a place of its own.
COMPONENTS: Mapping[int, str] = {
    2: "avx", 3: "mpx", 4: "mpx", 5: "avx512f", 6: "avx512f", 7: "avx512f", 9: "pku",
    11: "shstk", 12: "shstk", 17: "amx-tile", 18: "amx-tile", 62: "lwp",
}  # fmt: skip

# The levels of the x86-64 psABI, less what every 64-bit CPU has.
LEVELS: Mapping[str, frozenset[str]] = {
    "x86-64-v2": frozenset({"cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3"}),
    "x86-64-v3": frozenset({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    "x86-64-v4": frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
}

# What a control register, an MSR or an intercept truly switches off; other instructions run on
# silicon whatever CPUID says (seen on Zen 3 and on a Granite Rapids).
GATED = frozenset(
    {name for name in FEATURES if name.startswith(("avx", "amx"))}
    | {"fma", "fma4", "xop", "f16c", "vaes", "vpclmulqdq", "pku", "fsgsbase", "invpcid", "rdtscp"}
    | {"rdpru", "monitor", "mwaitx", "rtm", "waitpkg", "enqcmd", "smap", "wbnoinvd", "rdpid", "lwp"}
    | {"sep", "syscall", "tsc", "xsave", "fxsr", "sse", "mmx", "fpu"}
)


class Hit(Value, frozen=True):
    """A subject that a relation holds for; ``sure`` is False where it only may hold."""

    subject: str
    evidence: str
    sure: bool = True


Hits = Iterator[Hit]


def _identity_changes(s: Situation) -> Hits:
    for fact in ("vendor", "family", "model", "stepping"):
        born, there = getattr(s.guest.shown, fact), getattr(s.shown, fact)
        if born != there:
            yield Hit(subject=fact, evidence=f"{born} would become {there}")


def _makers_differ(s: Situation) -> Hits:
    if maker(s.guest.shown.vendor) != maker(s.destination.vendor):
        yield Hit(subject="vendor", evidence=_makers(s))


def _makers(s: Situation) -> str:
    return f"{s.guest.shown.vendor} at boot, {s.destination.name} is {s.destination.vendor}"


def _addresses_narrow(s: Situation) -> Hits:
    for fact in ("phys_bits", "linear_bits"):
        born, there = getattr(s.guest.shown, fact), getattr(s.destination, fact)
        if born is not None and there is not None and born > there:
            yield Hit(
                subject=fact.replace("_", "-"),
                evidence=f"{born} bits at boot, {there} on {s.destination.name}",
            )


def _addresses_widen(s: Situation) -> Hits:
    born, there = s.guest.shown.phys_bits, s.destination.phys_bits
    if born is not None and there is not None and born < there:
        yield Hit(
            subject="phys-bits", evidence=f"{born} bits at boot, {there} on {s.destination.name}"
        )


def _tsc_rate_differs(s: Situation) -> Hits:
    born, there = s.guest.shown.tsc_khz, s.destination.tsc_khz
    # KVM takes 250 ppm for the same rate (Linux arch/x86/kvm/x86.c, tsc_tolerance_ppm).
    if born and there and abs(born - there) * 4000 > born:
        yield Hit(subject="tsc", evidence=f"{born} kHz at boot, {there} kHz on the destination")


def _hypercalls_kept(s: Situation) -> Hits:
    if maker(s.guest.shown.vendor) != maker(s.destination.vendor):
        for name in sorted(s.guest.shown.features & HYPERCALLS):
            yield Hit(subject=name, evidence=_makers(s))


def _highest_leaf_falls(s: Situation) -> Hits:
    for fact, name in (("level", "basic-leaves"), ("xlevel", "extended-leaves")):
        born, there = getattr(s.guest.shown, fact), getattr(s.shown, fact)
        if born and there and born > there:
            yield Hit(subject=name, evidence=f"highest leaf {born:#x} at boot, {there:#x} there")


def _xsave_moves(s: Situation) -> Hits:
    there = {component.number: component for component in s.destination.xsave}
    moved: dict[str, str] = {}
    for born in s.guest.shown.xsave:
        name = COMPONENTS.get(born.number)
        new = there.get(born.number)
        if name in s.shown.features and new is not None and new != born:
            moved[str(name)] = (
                f"component {born.number}: {born.size} bytes at {born.offset} at boot, "
                f"{new.size} at {new.offset} on {s.destination.name}"
            )
    for name, evidence in sorted(moved.items()):
        yield Hit(subject=name, evidence=evidence)


def _xsave_may_move(s: Situation) -> Hits:
    if maker(s.guest.shown.vendor) == maker(s.destination.vendor):
        return
    known = {c.number for c in s.guest.shown.xsave} & {c.number for c in s.destination.xsave}
    for name in sorted({name for n, name in COMPONENTS.items() if n not in known} - {"avx"}):
        if name in s.shown.features:
            yield Hit(
                subject=name,
                evidence="makers place this state differently, and one layout is not known",
                sure=False,
            )


def _state_grows(s: Situation) -> Hits:
    born, there = s.guest.shown.xcr0, s.shown.xcr0
    if born is not None and there is not None and there & ~born:
        yield Hit(subject="xcr0", evidence=f"{born:#x} at boot, {there:#x} there")


def _restrictions_appear(s: Situation) -> Hits:
    for name in sorted(s.destination.features - s.guest.shown.features):
        feature = FEATURES.get(name)
        if feature is not None and feature.merge == "or":
            yield Hit(subject=name, evidence=f"set on {s.destination.name}, not shown at boot")


def _new_features(s: Situation) -> Hits:
    gained = sorted(
        name
        for name in s.destination.features - s.guest.shown.features
        if name in FEATURES and FEATURES[name].merge == "and"
    )
    if gained:
        yield Hit(subject="new", evidence=_some(gained))


def _hidden_but_there(s: Situation) -> Hits:
    if s.source is not None and (hidden := _hidden(s.source, s)):
        yield Hit(subject="hidden", evidence=f"{s.source.name} has {_some(hidden)}")


def _hidden_and_used(s: Situation) -> Hits:
    if s.source is not None and s.guest.uses is not None:
        for name in _hidden(s.source, s):
            if name in s.guest.uses:
                yield Hit(subject=name, evidence=f"not shown at boot, and {s.source.name} has it")


def _hidden(source: CpuModel, s: Situation) -> list[str]:
    """Instructions that run where the guest is, although it was not shown them, and not there."""
    return sorted(
        name
        for name in source.features - s.guest.shown.features - s.destination.features - GATED
        if name in FEATURES and FEATURES[name].kind == "instruction"
    )


def _library_level_falls(s: Situation) -> Hits:
    for level, needed in LEVELS.items():
        lost = sorted(needed - s.shown.features - s.translatable)
        if needed <= s.guest.shown.features and lost:
            yield Hit(subject=level, evidence=f"without {_some(lost)}")
            return


def _brand_differs(s: Situation) -> Hits:
    born, there = _silicon(s.source), _silicon(s.destination)
    if born and there and born != there:
        yield Hit(subject="generation", evidence=f"{born} to {there}")


def _silicon(cpu: CpuModel | None) -> str:
    return "" if cpu is None else f"{cpu.vendor} {cpu.family}/{cpu.model}"


def _some(names: list[str]) -> str:
    more = len(names) - 8
    return " ".join(names[:8]) + (f" and {more} more" if more > 0 else "")


RELATIONS: Mapping[str, Callable[[Situation], Hits]] = {
    "identity-changes": _identity_changes,
    "makers-differ": _makers_differ,
    "silicon-differs": _brand_differs,
    "addresses-narrow": _addresses_narrow,
    "addresses-widen": _addresses_widen,
    "tsc-rate-differs": _tsc_rate_differs,
    "hypercalls-of-another-maker": _hypercalls_kept,
    "highest-leaf-falls": _highest_leaf_falls,
    "xsave-moves": _xsave_moves,
    "xsave-may-move": _xsave_may_move,
    "state-grows": _state_grows,
    "restrictions-appear": _restrictions_appear,
    "new-features": _new_features,
    "hidden-but-there": _hidden_but_there,
    "hidden-and-used": _hidden_and_used,
    "library-level-falls": _library_level_falls,
}
"""Every relation by the name that rules use."""
