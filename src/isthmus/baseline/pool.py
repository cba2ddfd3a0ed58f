"""A pool: hosts that share one level, as a small open file.

The file keeps what each host can do, the level that guests were booted with, and what the operator
asked for.  ``version`` grows by one whenever the level changes, so a guest's version tells whether
it must be power-cycled to see what the pool has won.  A host may join only if it can honour the
level as it is: guests that run cannot give anything up.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

from isthmus.baseline.arriving import arriving
from isthmus.baseline.growth import Growth, growth
from isthmus.baseline.level import Baseline, level
from isthmus.cpu.features import FEATURES, find
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.values import Value

SCHEMA_VERSION = 1


class Pool(Value, frozen=True):
    """A pool's file."""

    name: str
    hosts: tuple[CpuModel, ...]
    level: Baseline
    version: int = 1
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    translate: tuple[str, ...] = ()
    schema: int = SCHEMA_VERSION


class Joining(Value, frozen=True):
    """Whether a host may join: ``obstacles`` are the reasons why not, ``pool`` what it would be."""

    host: str
    obstacles: tuple[str, ...]
    pool: Pool


class Raising(Value, frozen=True):
    """What a pool wins when ``without`` leave (by itself: nobody).

    ``power_cycle`` are the guests that must be powered off and on to see what is won.
    """

    without: tuple[str, ...]
    wins: tuple[str, ...]
    power_cycle: tuple[str, ...]
    pool: Pool


def found(
    name: str,
    hosts: Sequence[CpuModel],
    *,
    keep: Collection[str] = (),
    drop: Collection[str] = (),
    translate: Collection[str] = (),
) -> Pool:
    """A new pool of these hosts; raises :class:`InputError` as :func:`level` does."""
    names = [host.name for host in hosts]
    if twice := sorted({host for host in names if names.count(host) > 1}):
        raise InputError(f"{', '.join(twice)}: named twice", remedy="name each host once")
    kept, dropped, translated = tuple(sorted(keep)), tuple(sorted(drop)), tuple(sorted(translate))
    return Pool(
        name=name,
        hosts=tuple(sorted((_small(host) for host in hosts), key=lambda host: host.name)),
        level=level(hosts, keep=kept, drop=dropped, translate=translated),
        keep=kept,
        drop=dropped,
        translate=translated,
    )


def join(pool: Pool, host: CpuModel) -> Joining:
    """Whether ``host`` may join ``pool``, and what the pool is with it.

    :raises InputError: a host of that name is in the pool.
    """
    if any(member.name == host.name for member in pool.hosts):
        raise InputError(f"{host.name}: in pool {pool.name} already", remedy="name another host")
    hosts = tuple(sorted((*pool.hosts, _small(host)), key=lambda member: member.name))
    keep = [name for name in pool.keep if find(name).name in host.features]
    both = level(hosts, keep=keep, drop=pool.drop, translate=pool.translate)
    level_of_all = pool.level.replace(losses=both.losses, vendors=both.vendors)
    return Joining(
        host=host.name,
        obstacles=(*_features_lost(pool, host, both), *_limits_lowered(pool.level.model, host)),
        pool=pool.replace(hosts=hosts, level=level_of_all),
    )


def raised(
    pool: Pool, leaving: Collection[str] = (), guests: Mapping[str, int] | None = None
) -> Raising:
    """What the pool wins when the named hosts leave it.

    :param guests: the pool's guests and the version of the level that each was booted with.
    :raises InputError: an unknown host, or nobody would be left.
    """
    known = {host.name for host in pool.hosts}
    if strange := sorted(set(leaving) - known):
        raise InputError(
            f"{', '.join(strange)}: not in pool {pool.name}",
            remedy=f"its hosts are {', '.join(sorted(known))}",
        )
    rest = tuple(host for host in pool.hosts if host.name not in leaving)
    if not rest:
        raise InputError("no host would be left in the pool", remedy="leave one at least")
    better = level(rest, keep=pool.keep, drop=pool.drop, translate=pool.translate)
    wins = tuple(sorted(better.model.features - pool.level.model.features))
    changed = better.model.replace(name="") != pool.level.model.replace(name="")
    version = pool.version + changed
    return Raising(
        without=tuple(sorted(leaving)),
        wins=wins,
        power_cycle=tuple(sorted(g for g, born in (guests or {}).items() if born < version)),
        pool=pool.replace(hosts=rest, level=better, version=version),
    )


def ways(pool: Pool) -> tuple[Growth, ...]:
    """Which hosts could leave and what that would win."""
    return growth(pool.hosts, keep=pool.keep, drop=pool.drop)


def _features_lost(pool: Pool, host: CpuModel, both: Baseline) -> Iterator[str]:
    ours, theirs = pool.level.model.features, both.model.features
    for name in sorted(ours - theirs):
        kind = FEATURES[name].kind if name in FEATURES else "kernel"
        if kind == "hint" or (name not in host.features and name in arriving(host)):
            continue
        if name not in host.features:
            yield f"{_told(name)}: {host.name} lacks it"
        else:
            yield f"{_told(name)}: guests that have it could not move between {host.name} and here"
    for name in sorted(theirs - ours):
        if name in FEATURES and FEATURES[name].merge == "or":
            yield f"{_told(name)}: the pool's guests do not know of this restriction"


def _limits_lowered(model: CpuModel, host: CpuModel) -> Iterator[str]:
    for fact, told in (("phys_bits", "physical"), ("linear_bits", "linear")):
        ours, theirs = getattr(model, fact), getattr(host, fact)
        if ours is not None and theirs is not None and theirs < ours:
            yield f"{told} addresses: {host.name} has {theirs} bits, the level {ours}"
    leaves: tuple[tuple[Literal["level", "xlevel"], str], ...] = (
        ("level", "basic"),
        ("xlevel", "extended"),
    )
    for fact, told in leaves:
        ours, theirs = model.highest(fact), host.highest(fact)
        if ours is not None and theirs is not None and theirs < ours:
            yield f"highest {told} CPUID leaf: {host.name} has {theirs:#x}, the level {ours:#x}"


def _told(name: str) -> str:
    return f"{name} ({FEATURES[name].kind})" if name in FEATURES else name


def _small(host: CpuModel) -> CpuModel:
    """A host without its raw registers, which levelling does not ask for."""
    return host.replace(leaves=(), msrs={})
