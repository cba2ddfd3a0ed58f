"""The catalogue of CPU features: data in ``data/features.json``, read once and never changed.

A feature is named as QEMU names it, with ``-``.  ``requires`` names the features without which it
cannot work or must not be shown; a set of features is *closed* when it holds all that its members
require.
"""

import enum
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources

from isthmus.values import Value, from_json


class Kind(enum.StrEnum):
    """What losing a feature means to a guest that has seen it."""

    INSTRUCTION = "instruction"  # programs execute it
    STATE = "state"  # it decides which registers exist and how they are saved
    KERNEL = "kernel"  # only the guest's kernel uses it
    NESTED = "nested"  # only a guest that runs guests uses it
    MITIGATION = "mitigation"  # the kernel chose defences by it
    HINT = "hint"  # it tells how fast, not whether
    HYPERVISOR = "hypervisor"  # offered by KVM or Hyper-V, not by the CPU


class Feature(Value, frozen=True):
    """One named bit: of CPUID (``leaf`` …) or of a feature MSR (``msr``), and what hangs on it.

    ``merge`` says how a level treats it: "and" (every host needs it) or "or" (any host that has it
    makes the pool have it, for bits that say "this CPU may misbehave").  ``hypercall``: a guest that
    sees it makes hypercalls, whose instruction differs between the makers.  ``layout_differs``: its
    state lies elsewhere in the makers' standard XSAVE images (PKRU at 2432 on AMD, 2688 on Intel).
    """

    name: str
    kind: Kind
    source: str
    bit: int
    leaf: int | None = None
    subleaf: int = 0
    register: str = ""
    msr: int | None = None
    libvirt: str = ""
    instructions: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    merge: str = "and"
    hypercall: bool = False
    layout_differs: bool = False


class _Catalogue(Value, frozen=True):
    schema: int
    origin: str
    features: tuple[Feature, ...]


@cache
def features() -> Mapping[str, Feature]:
    """All features by canonical name."""
    data = resources.files("isthmus.cpu").joinpath("data/features.json").read_bytes()
    catalogue = from_json(data, _Catalogue, where="features.json")
    return {feature.name: feature for feature in catalogue.features}


def closed(names: Iterable[str]) -> frozenset[str]:
    """``names`` without those that lack something they require."""
    kept = set(names)
    table = features()
    while True:
        broken = {
            name for name in kept if name in table and not kept.issuperset(table[name].requires)
        }
        if not broken:
            return frozenset(kept)
        kept -= broken


def of_kind(names: Iterable[str], *kinds: Kind) -> frozenset[str]:
    """Those of ``names`` that are of one of ``kinds``."""
    table = features()
    return frozenset(name for name in names if name in table and table[name].kind in kinds)


def words(names: Iterable[str]) -> dict[tuple[int, int, str], int]:
    """The CPUID words that ``names`` set: (leaf, subleaf, register) -> bits."""
    table = features()
    result: dict[tuple[int, int, str], int] = {}
    for name in names:
        feature = table.get(name)
        if feature is not None and feature.leaf is not None:
            key = (feature.leaf, feature.subleaf, feature.register)
            result[key] = result.get(key, 0) | 1 << feature.bit
    return result


__all__ = ["Feature", "Kind", "closed", "features", "of_kind", "words"]
