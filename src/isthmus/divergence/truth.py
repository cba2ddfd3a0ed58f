"""Three-valued answers, after Kleene: it holds, it does not hold, or nobody knows."""

import re
from collections.abc import Iterable

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel

Truth = bool | None
"""Holds, does not hold, or not known."""


def all_of(truths: Iterable[Truth]) -> Truth:
    """Holds if all hold; one that does not decides, whatever is unknown."""
    found = list(truths)
    return False if False in found else None if None in found else True


def any_of(truths: Iterable[Truth]) -> Truth:
    """Holds if any holds; does not only if none does."""
    found = list(truths)
    return True if True in found else None if None in found else False


def negation(truth: Truth) -> Truth:
    """The opposite; what is not known stays so."""
    return None if truth is None else not truth


def has_feature(cpu: CpuModel, name: str) -> Truth:
    """Whether a CPU has a feature; not known if its source could not have told."""
    if name in cpu.features:
        return True
    feature = FEATURES.get(name)
    if (feature is None or feature.msr is not None) and "feature MSRs" in cpu.unknown:
        return None
    unnamed = feature is None or feature.linux is None
    if unnamed and any(gap.startswith("features that the kernel") for gap in cpu.unknown):
        return None
    return False


def version(text: str) -> tuple[int, ...] | None:
    """The leading numbers of a version ("6.1.0-56-cloud-amd64": 6, 1, 0); None if there is none."""
    match = re.match(r"\D{0,8}(\d{1,6}(?:\.\d{1,6}){0,3})", text)
    return tuple(int(part) for part in match[1].split(".")) if match else None


def at_least(found: str, wanted: str) -> Truth:
    """Whether a version is ``wanted`` or later; not known if there is none."""
    have, want = version(found), version(wanted)
    return None if have is None or want is None else have >= want
