"""The wider of a host's two sets: what a guest that comes from elsewhere may have.

A fresh guest is shown what the host announces.  A guest that was born elsewhere has chosen already:
it may keep what the host hides and yet carries (TSX whose transactions always abort), and what is
advice only.  The knowledge is ``data/arriving.json``, each entry with its source.
"""

import functools
from collections.abc import Sequence
from importlib import resources

from isthmus.cpu.model import CpuModel
from isthmus.values import Value, from_json


class Tolerated(Value, frozen=True, forbid_unknown_fields=True):
    """Features that a CPU carries unannounced if it has every ``witness`` (and is of ``vendors``).

    No vendors: of any.
    """

    features: tuple[str, ...]
    why: str
    source: str
    witness: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()

    def applies(self, host: CpuModel) -> bool:
        """Whether ``host`` carries them."""
        return host.features.issuperset(self.witness) and (
            not self.vendors or host.vendor in self.vendors
        )


class _Table(Value, frozen=True):
    schema: int
    source: str
    tolerated: tuple[Tolerated, ...]


@functools.cache
def tolerated() -> tuple[Tolerated, ...]:
    """Everything known of what CPUs carry unannounced."""
    data = resources.files("isthmus.baseline").joinpath("data", "arriving.json").read_bytes()
    return from_json(data, _Table, where="arriving.json").tolerated


def arriving(host: CpuModel) -> frozenset[str]:
    """What a guest that comes to ``host`` from elsewhere may have: never less than it announces."""
    return host.features.union(*(entry.features for entry in tolerated() if entry.applies(host)))


def accepted(hosts: Sequence[CpuModel], level: frozenset[str]) -> frozenset[str]:
    """What a guest may have that moves freely between ``hosts``, whose level is ``level``."""
    unannounced = frozenset.intersection(*(arriving(host) for host in hosts))
    known = frozenset(name for entry in tolerated() for name in entry.features)
    return level | (unannounced & known)
