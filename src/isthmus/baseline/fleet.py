"""Levelling a fleet of any size: a million hosts as rows of 64-bit words.

A fleet has few kinds of CPU and many hosts.  Hosts that agree in everything but their features are
one *kind*; what levelling asks of a kind's features is only which all of its hosts have and which
any has, so each kind is reduced to two hosts, and :func:`isthmus.baseline.level.level` decides as
it does for a small pool.
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from isthmus.baseline.level import Baseline, level
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError

Words = npt.NDArray[np.uint64]
_BITS = 64


class Fleet:
    """Hosts as numbers: ``words`` (hosts x words) of feature bits, ``kinds`` (hosts) into ``cpus``.

    Bit ``i`` of a row, counted through its words, is feature ``names[i]``.  ``cpus`` are models
    whose features do not count.
    """

    def __init__(
        self, names: Sequence[str], cpus: Sequence[CpuModel], kinds: npt.NDArray[np.intp],
        words: Words,
    ) -> None:  # fmt: skip
        if words.ndim != 2 or words.shape[1] * _BITS < len(names) or len(words) != len(kinds):
            raise InputError("the fleet's arrays do not fit", remedy="pack the hosts with pack()")
        self.names = tuple(names)
        self.cpus = tuple(cpus)
        self.kinds = kinds
        self.words = words

    def __len__(self) -> int:
        return len(self.kinds)

    def features(self, row: Words) -> frozenset[str]:
        """The features of one row of words."""
        bits = np.unpackbits(row.astype("<u8").view(np.uint8), bitorder="little")
        return frozenset(self.names[index] for index in np.flatnonzero(bits).tolist())

    def summary(self) -> tuple[CpuModel, ...]:
        """Two hosts for each kind: one with what all of its hosts have, one with what any has.

        Their intersection and their union are those of the kind's hosts.
        """
        hosts = []
        for kind, cpu in enumerate(self.cpus):
            rows = self.words[self.kinds == kind]
            if not len(rows):
                continue
            everywhere = self.features(np.bitwise_and.reduce(rows, axis=0))
            anywhere = self.features(np.bitwise_or.reduce(rows, axis=0))
            hosts += [cpu.replace(features=everywhere), cpu.replace(features=anywhere)]
        return tuple(hosts)


def pack(hosts: Sequence[CpuModel]) -> Fleet:
    """A fleet of these hosts.

    :raises InputError: there is no host.
    """
    if not hosts:
        raise InputError("no host to level", remedy="name at least one")
    names = sorted(frozenset(FEATURES).union(*(host.features for host in hosts)))
    place = {name: index for index, name in enumerate(names)}
    width = -(-len(names) // _BITS)
    cpus: list[CpuModel] = []
    kinds = np.empty(len(hosts), dtype=np.intp)
    words = np.zeros((len(hosts), width), dtype=np.uint64)
    keys: dict[bytes, int] = {}
    for row, host in enumerate(hosts):
        kind = host.replace(features=frozenset(), leaves=(), msrs={})
        key = repr(kind).encode()
        if key not in keys:
            keys[key] = len(keys)
            cpus.append(kind)
        kinds[row] = keys[key]
        for name in host.features:
            index = place[name]
            words[row, index // _BITS] |= np.uint64(1 << index % _BITS)
    return Fleet(names, cpus, kinds, words)


def level_fleet(
    fleet: Fleet, *, keep: Collection[str] = (), drop: Collection[str] = ()
) -> Baseline:
    """The baseline of a fleet: the same as :func:`level` gives for its hosts.

    ``losses`` tell of each kind twice: of a host that has only what all of the kind have, and of
    one that has everything that any of them has.

    :raises InputError: as :func:`level` does.
    """
    return level(fleet.summary(), keep=keep, drop=drop)
