"""Moves as examples: each rule carries one where it speaks and one where it does not.

They are written against the CPUs of ``data/reference_cpus.json``, so that a reader sees real pairs
of hosts, and they make every rule executable.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources

import msgspec

from isthmus.baseline.shown import shown_on
from isthmus.cpu.model import CpuModel, XsaveComponent
from isthmus.divergence.condition import Situation
from isthmus.divergence.evidence import GuestEvidence, GuestFacts, HostEvidence
from isthmus.errors import InputError
from isthmus.values import Value, from_json


class CpuExample(Value, frozen=True, forbid_unknown_fields=True):
    """A reference CPU with changes: ``xsave`` replaces its layout, fields that are given theirs."""

    base: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    stepping: int | None = None
    level: int | None = None
    phys_bits: int | None = None
    linear_bits: int | None = None
    tsc_khz: int | None = None
    xcr0: int | None = None
    xsave: tuple[XsaveComponent, ...] = ()
    unknown: tuple[str, ...] = ()

    def model(self) -> CpuModel:
        """The CPU.

        :raises InputError: there is no reference CPU of that name.
        """
        base = reference_cpus().get(self.base)
        if base is None:
            raise InputError(
                f"{self.base}: no reference CPU", remedy="name one of reference_cpus.json"
            )
        changes = {
            name: value
            for name in (
                "stepping", "level", "phys_bits", "linear_bits", "tsc_khz", "xcr0", "xsave",
                "unknown",
            )
            if (value := getattr(self, name))
        }  # fmt: skip
        features = (base.features | set(self.add)) - set(self.remove)
        return base.replace(features=features, **changes)


class Example(Value, frozen=True, forbid_unknown_fields=True):
    """A move: the CPU that the guest was ``born`` with, the destination's, and what is known.

    ``shown`` is what the destination shows; left out, what Isthmus would show.
    """

    born: str | CpuExample
    destination: str | CpuExample
    shown: str | CpuExample | None = None
    source: str | CpuExample | None = None
    guest: GuestFacts = GuestFacts()
    here: HostEvidence = HostEvidence()
    there: HostEvidence = HostEvidence()
    translatable: frozenset[str] = frozenset()

    def situation(self) -> Situation:
        """The example as what rules are asked about."""
        born, destination = _model(self.born), _model(self.destination)
        return Situation(
            guest=GuestEvidence(shown=born, **msgspec.structs.asdict(self.guest)),
            destination=destination,
            shown=_model(self.shown) if self.shown else shown_on(born, destination),
            source=_model(self.source) if self.source else None,
            here=self.here,
            there=self.there,
            translatable=self.translatable,
        )

    def words(self) -> str:
        """The pair in a few words, for people."""
        born, there = _name(self.born), _name(self.destination)
        return f"{born} to {there}"


class _Cpus(Value, frozen=True):
    schema: int
    cpus: tuple[CpuModel, ...]


@cache
def reference_cpus() -> Mapping[str, CpuModel]:
    """The CPUs that examples are written against, by name."""
    data = resources.files("isthmus.divergence").joinpath("data/reference_cpus.json").read_bytes()
    return {cpu.name: cpu for cpu in from_json(data, _Cpus, where="reference_cpus.json").cpus}


def _model(cpu: str | CpuExample) -> CpuModel:
    return (CpuExample(base=cpu) if isinstance(cpu, str) else cpu).model()


def _name(cpu: str | CpuExample) -> str:
    if isinstance(cpu, str):
        return cpu
    changes = "".join(f",+{name}" for name in cpu.add[:2]) + "".join(
        f",-{name}" for name in cpu.remove[:2]
    )
    return cpu.base + changes
