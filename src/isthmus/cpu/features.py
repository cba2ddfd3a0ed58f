"""The features of x86 processors: one bit each, its names, what it needs, what losing it means.

The knowledge is ``data/features.json``; every entry names its source.  Canonical names are those of
QEMU with '-' for '_'; where QEMU has none, libvirt's or Linux's.  Closing a set over ``requires``
follows the Intel SDM (vol. 1, chapters 11-14: detection of SSE, AVX, XSAVE), the AMD APM (vol. 3,
appendix E) and Linux ``arch/x86/kernel/cpu/cpuid-deps.c``.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from typing import Literal

from isthmus.errors import InputError
from isthmus.values import Value, from_json

Kind = Literal["instruction", "state", "kernel", "mitigation", "hint", "hypervisor"]
"""What the bit announces: instructions of programs; state of XSAVE and FXSAVE; something that only
an operating system uses; a defence against speculation, or freedom from a flaw; advice that changes
speed only; something of virtualisation."""

Merge = Literal["and", "or", "never", "ignore"]
"""How a pool's bit follows from its hosts': all have it; any has it (the bit announces a
restriction); never, where makers mix (state that cannot move between makers); the operating system
sets it (no capability)."""

Register = Literal["eax", "ebx", "ecx", "edx"]


class Feature(Value, frozen=True, forbid_unknown_fields=True):
    """One feature: where its bit lies and what is known of it.

    ``leaf``, ``subleaf`` and ``register`` place it in CPUID, ``msr`` in a feature register; ``bit``
    counts from 0.  All are None for a feature known by name only.
    """

    name: str
    kind: Kind
    merge: Merge
    source: str
    aliases: tuple[str, ...] = ()
    leaf: int | None = None
    subleaf: int | None = None
    register: Register | None = None
    msr: int | None = None
    bit: int | None = None
    qemu: str | None = None
    libvirt: str | None = None
    linux: str | None = None
    xen: str | None = None
    vmware: str | None = None
    requires: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()


class _Table(Value, frozen=True):
    schema: int
    source: str
    features: tuple[Feature, ...]


class _Lazy(Mapping[str, Feature]):
    """The table, read at its first use: importing this module costs nothing."""

    @functools.cached_property
    def _features(self) -> dict[str, Feature]:
        data = resources.files("isthmus.cpu").joinpath("data", "features.json").read_bytes()
        table = from_json(data, _Table, where="features.json")
        return {feature.name: feature for feature in table.features}

    def __getitem__(self, name: str) -> Feature:
        return self._features[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


FEATURES: Mapping[str, Feature] = _Lazy()
"""Every known feature by its canonical name."""


@functools.cache
def _spellings() -> dict[str, str]:
    spellings = {alias: name for name, feature in FEATURES.items() for alias in feature.aliases}
    return spellings | {name: name for name in FEATURES}


def find(name: str) -> Feature:
    """The feature of any known spelling.

    :raises InputError: no feature has that name.
    """
    canonical = _spellings().get(name.strip().lower().replace("_", "-"))
    if canonical is None:
        raise InputError(f"{name}: no known CPU feature", remedy="use a name of QEMU or libvirt")
    return FEATURES[canonical]


@functools.cache
def by_cpuid() -> Mapping[tuple[int, int, Register, int], str]:
    """Canonical names by CPUID leaf, sub-leaf, register and bit."""
    return {
        (feature.leaf, feature.subleaf or 0, feature.register, feature.bit): name
        for name, feature in FEATURES.items()
        if feature.leaf is not None and feature.register is not None and feature.bit is not None
    }


def closure_violations(features: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
    """Features of a set that lack some of what they need, with what is missing.

    Unknown names need nothing.
    """
    present = frozenset(features)
    lacking: dict[str, tuple[str, ...]] = {}
    for name in sorted(present):
        feature = FEATURES.get(name)
        missing = tuple(n for n in feature.requires if n not in present) if feature else ()
        if missing:
            lacking[name] = missing
    return lacking


def close(features: Iterable[str]) -> frozenset[str]:
    """The largest part of a set in which every feature has what it needs."""
    kept = frozenset(features)
    while lacking := closure_violations(kept):
        kept = kept.difference(lacking)
    return kept


__all__ = [
    "FEATURES",
    "Feature",
    "Kind",
    "Merge",
    "by_cpuid",
    "close",
    "closure_violations",
    "find",
]
