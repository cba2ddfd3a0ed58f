"""What differs between CPUs, grouped by what it means to a guest that moves between them.

A guest is shown all that one CPU has and goes to the other: the findings of that move, in each
direction, are the difference.  Pure: values in, values out.
"""

import enum
from collections.abc import Mapping, Sequence
from functools import cache

from isthmus.baseline.shown import shown_on
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence, HostEvidence
from isthmus.divergence.finding import Finding, Severity
from isthmus.divergence.rules import findings, groups
from isthmus.values import Value


class Meaning(enum.StrEnum):
    """What a difference means to a guest, in the order in which people ask."""

    INSTRUCTIONS = "instructions lost"
    RESULTS = "different results"
    STATE = "state layout"
    TIMING = "timing"
    SECURITY = "security"
    NESTED = "nested virtualisation"
    IDENTITY = "identity and topology"
    SOFTWARE = "what software makes of it"


_BY_GROUP: Mapping[str, Meaning] = {
    "instructions": Meaning.INSTRUCTIONS, "entry": Meaning.INSTRUCTIONS,
    "silent": Meaning.RESULTS, "state": Meaning.STATE, "time": Meaning.TIMING,
    "security": Meaning.SECURITY, "topology": Meaning.IDENTITY, "software": Meaning.SOFTWARE,
}  # fmt: skip
_BY_KIND: Mapping[str, Meaning] = {
    "instruction": Meaning.INSTRUCTIONS, "kernel": Meaning.INSTRUCTIONS, "state": Meaning.STATE,
    "mitigation": Meaning.SECURITY, "hint": Meaning.TIMING, "hypervisor": Meaning.NESTED,
}  # fmt: skip


class Direction(Value, frozen=True):
    """What guests of ``source`` meet on ``destination``, and the worst of it; None: nothing."""

    source: str
    destination: str
    groups: dict[Meaning, tuple[Finding, ...]]
    worst: Severity | None

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(f.severity is severity for found in self.groups.values() for f in found)


class Comparison(Value, frozen=True):
    """CPUs and every ordered pair of them.

    ``features`` are those that some have and others lack, with the names of those that have them.
    """

    hosts: tuple[str, ...]
    features: dict[str, tuple[str, ...]]
    directions: tuple[Direction, ...]


def link(rule: str) -> str:
    """Where the documentation tells of a rule."""
    return f"docs/divergences.md#{rule}"


def compare(
    hosts: Sequence[CpuModel],
    *,
    translatable: frozenset[str] = frozenset(),
    hypervisor: str = "",
) -> Comparison:
    """What differs between these CPUs, for guests going from any to any other.

    :param translatable: features whose loss an armed translator covers.
    :param hypervisor: what runs guests on them (``kvm``, ``tcg`` …), empty if unknown.
    """
    everywhere = frozenset.intersection(*(host.features for host in hosts)) if hosts else ()
    anywhere = frozenset[str]().union(*(host.features for host in hosts))
    return Comparison(
        hosts=tuple(host.name for host in hosts),
        features={
            name: tuple(host.name for host in hosts if name in host.features)
            for name in sorted(anywhere.difference(everywhere))
        },
        directions=tuple(
            _direction(source, destination, translatable, hypervisor)
            for source in hosts
            for destination in hosts
            if source is not destination
        ),
    )


def meaning(finding: Finding) -> Meaning:
    """What a finding means to a guest."""
    feature = FEATURES.get(finding.subject)
    if feature is not None and feature.kind == "hypervisor" and not feature.name.startswith("kvm"):
        return Meaning.NESTED
    group = _group_of().get(finding.rule, "fallback")
    if group in _BY_GROUP:
        return _BY_GROUP[group]
    return _BY_KIND[feature.kind] if feature is not None else Meaning.SOFTWARE


@cache
def _group_of() -> dict[str, str]:
    return {rule.id: name for name, group in groups().items() for rule in group.rules}


def _direction(
    source: CpuModel, destination: CpuModel, translatable: frozenset[str], hypervisor: str
) -> Direction:
    host = HostEvidence(hypervisor=hypervisor)
    found = findings(
        GuestEvidence(shown=source, system="linux"),
        destination,
        shown_on(source, destination),
        translatable=translatable,
        source=source,
        here=host,
        there=host,
    )
    grouped: dict[Meaning, tuple[Finding, ...]] = {}
    for wanted in Meaning:
        mine = [finding for finding in found if meaning(finding) is wanted]
        if mine:
            mine.sort(key=lambda f: (-f.severity.rank, f.rule, f.subject))
            grouped[wanted] = tuple(mine)
    return Direction(
        source=source.name,
        destination=destination.name,
        groups=grouped,
        worst=max((f.severity for f in found), key=lambda s: s.rank, default=None),
    )
