"""A level in the words of a platform: files, commands, and what the platform cannot say.

A renderer is a pure function from a :class:`~isthmus.baseline.level.Baseline` and a name for it to
a :class:`Rendering`.  It never weakens a level in silence: what a platform cannot hide from a guest
is a *refusal*, since a guest would see it on one host and miss it on another; what it cannot show
(a guest is told of less) is a *note*.
"""

import functools
import re
from collections.abc import Mapping
from importlib import resources

from isthmus.baseline.identity import maker
from isthmus.baseline.level import Baseline
from isthmus.cpu.features import FEATURES, close
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.values import Value, from_json

_VERSIONED = re.compile(r"-v\d+\Z")


class RenderedFile(Value, frozen=True):
    """A file or fragment: where its text belongs, in words or as a path, and the text."""

    name: str
    text: str


class Rendering(Value, frozen=True):
    """What a platform is told: ``files``, ``commands`` for its administrator, ``notes``.

    ``refusals`` are reasons why the platform cannot honour the level; with one of them, the rest is
    for reading only.
    """

    platform: str
    files: tuple[RenderedFile, ...] = ()
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


class _Kvm(Value, frozen=True):
    schema: int
    source: str
    features: frozenset[str]


@functools.cache
def kvm_features() -> frozenset[str]:
    """What KVM ever shows a guest; anything else of a real CPU stays hidden from guests."""
    data = resources.files("isthmus.hypervisor").joinpath("data", "kvm.json").read_bytes()
    return from_json(data, _Kvm, where="kvm.json").features


def under_kvm(level: Baseline) -> Baseline:
    """The level less what KVM never shows guests: for hosts that dumps of real CPUs describe."""
    return level.replace(
        model=level.model.replace(features=close(level.model.features & kvm_features()))
    )


def nearest(
    model: CpuModel, named: Mapping[str, CpuModel], *, same_family: bool = False
) -> CpuModel:
    """The named model to start from: of the same vendor, then by the shortest remainder.

    A versioned name comes before an equal one without a version.

    :param same_family: prefer the model's family to a short remainder, for platforms that show the
        base's numbers: guests choose their defences by the family.
    :raises InputError: there is none.
    """

    def cost(name: str) -> tuple[bool, bool, int, bool, str]:
        base = named[name]
        return (
            base.vendor != model.vendor,
            same_family and base.family != model.family,
            len(base.features ^ model.features),
            _VERSIONED.search(name) is None,
            name,
        )

    if not named:
        raise InputError(
            "no named CPU model to start from", remedy="read them from a QEMU that has some"
        )
    best = min(named, key=cost)
    return named[best].replace(name=best)


def told(names: frozenset[str] | set[str] | list[str], limit: int = 12) -> str:
    """Names for a sentence: sorted, the rest counted."""
    ordered = sorted(names)
    more = len(ordered) - limit
    return ", ".join(ordered[:limit]) + (f" and {more} more" if more > 0 else "")


def identifier(name: str, limit: int = 40) -> str:
    """A name that every platform takes as an identifier."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:limit].strip("-")
    return plain or "pool"


def mixed_makers(level: Baseline, platform: str, why: str) -> tuple[str, ...]:
    """The refusal of a platform that cannot serve a pool of several makers; () for one maker."""
    if not level.mixed:
        return ()
    makers = " and ".join(sorted({maker(vendor) for vendor in level.vendors}))
    return (f"{platform} cannot serve a pool of {makers}: {why}",)


def identity_note(model: CpuModel, base: CpuModel) -> tuple[str, ...]:
    """What guests see instead of the level's numbers where a platform takes them from a base."""
    ours = (model.family, model.model, model.stepping)
    theirs = (base.family, base.model, base.stepping)
    if ours == theirs:
        return ()
    sentence = (
        f"guests see {base.name}'s family {theirs[0]}, model {theirs[1]}, stepping {theirs[2]} "
        f"instead of {ours[0]}, {ours[1]}, {ours[2]}: the same on every host of the pool"
    )
    return (sentence,)


def unspoken(names: frozenset[str], platform: str) -> tuple[str, ...]:
    """The note on features that a platform has no name for."""
    real = {name for name in names if name in FEATURES and FEATURES[name].merge != "ignore"}
    real -= {"hypervisor"}
    if not real:
        return ()
    return (f"{platform} has no name for {told(real)}: guests are not shown it",)
