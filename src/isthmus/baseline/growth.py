"""Growth: which hosts a pool would have to leave out to win which features.

A baseline is as poor as its poorest host.  Leaving out one host, or the few that lack the same
things, may win much; which is worth it is the operator's choice.
"""

from collections.abc import Collection, Sequence

from isthmus.baseline.level import level
from isthmus.cpu.model import CpuModel
from isthmus.values import Value


class Growth(Value, frozen=True):
    """A way to grow: the hosts to leave out (by name) and the features that the rest then have."""

    without: tuple[str, ...]
    wins: tuple[str, ...]


def growth(
    hosts: Sequence[CpuModel], *, keep: Collection[str] = (), drop: Collection[str] = ()
) -> tuple[Growth, ...]:
    """The ways to grow a pool, fewest hosts first, then most features.

    Tried are: leaving out each single host, and for each feature that some host lacks, all hosts
    that lack it.  A way is left out if another wins as much with fewer hosts of it.  Hosts of equal
    features go together.
    """
    base = level(hosts, keep=keep, drop=drop).model.features
    sets = {frozenset({index}) for index in range(len(hosts))}
    anywhere = frozenset[str]().union(*(host.features for host in hosts))
    sets |= {
        frozenset(index for index, host in enumerate(hosts) if feature not in host.features)
        for feature in anywhere - base
    }
    makers = {host.vendor for host in hosts}
    sets |= {
        frozenset(index for index, host in enumerate(hosts) if host.vendor == vendor)
        for vendor in makers
    }
    won: dict[frozenset[int], frozenset[str]] = {}
    for left_out in sets:
        rest = [host for index, host in enumerate(hosts) if index not in left_out]
        if left_out and rest:
            gain = level(rest, keep=keep, drop=drop).model.features - base
            if gain:
                won[left_out] = gain
    best = [
        Growth(
            without=tuple(sorted(hosts[index].name for index in left_out)), wins=tuple(sorted(gain))
        )
        for left_out, gain in won.items()
        if not any(other < left_out and won[other] >= gain for other in won)
    ]
    return tuple(sorted(best, key=lambda way: (len(way.without), -len(way.wins), way.without)))


def costliest(hosts: Sequence[CpuModel]) -> Growth | None:
    """The one host whose leaving wins most; None where no single host does."""
    single = [way for way in growth(hosts) if len(way.without) == 1]
    return max(single, key=lambda way: len(way.wins), default=None)
