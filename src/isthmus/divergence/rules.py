"""The rules engine: a guest, its destination and the catalogue of divergences give findings.

Pure: values in, values out.  The catalogue is data (``data/catalogue``), in the language of
:mod:`isthmus.divergence.condition`.  There are two kinds of rules.

* Rules about a *loss*: for each feature that the guest was shown and would not be shown on the
  destination, the first of them that applies speaks.  The last one refuses: what no rule explains
  is not let through.
* Rules about the guest and its destination *as a whole*: each that applies speaks, once for each
  subject of its relation.

Where a condition cannot be judged, the rule speaks with the severity it states for that (by default
its own), and the finding says what is not known.
"""

from functools import cache
from importlib import resources
from typing import Literal

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.condition import Condition, Situation
from isthmus.divergence.evidence import GuestEvidence, HostEvidence
from isthmus.divergence.examples import Example
from isthmus.divergence.finding import Finding, Severity
from isthmus.divergence.relations import RELATIONS, Hit
from isthmus.divergence.truth import Truth
from isthmus.values import Value, from_json

GROUPS = (
    "instructions", "silent", "entry", "state", "time", "topology", "security", "software",
    "fallback",
)  # fmt: skip
"""The files of the catalogue, in the order in which their rules are tried."""

Basis = Literal["experiment", "source", "manual", "unverified"]
"""How well a rule is founded: seen in the lab or on silicon; its source was opened and says so; as
the makers' manuals have it; told by somebody, not yet checked."""


class Lost(Value, frozen=True, forbid_unknown_fields=True):
    """Which lost features a rule is about.

    One of ``features``, those of a ``kind`` ("*": any), or those that pools ``merge`` so.
    """

    features: tuple[str, ...] = ()
    kind: str = ""
    merge: str = ""

    def covers(self, name: str) -> bool:
        """Whether the rule is about the loss of ``name``."""
        feature = FEATURES.get(name)
        if self.features and name not in self.features:
            return False
        if self.kind not in {"", "*"} and (feature is None or feature.kind != self.kind):
            return False
        return not self.merge or (feature is not None and feature.merge == self.merge)


class Rule(Value, frozen=True, forbid_unknown_fields=True):
    """One divergence; see :class:`isthmus.divergence.finding.Finding` for the texts.

    It is about what is ``lost``, or about a ``relation``, or (neither given) about ``subject``.
    ``when`` must hold as well.  ``unknown`` is its severity where ``when`` cannot be judged:
    ``severity`` by default, "nothing" to be silent then.  ``translates``: it needs only translation
    where the armed translator covers the lost feature.  ``example`` is a move where it speaks,
    ``counterexample`` one where it does not; ``test`` names a further test.
    """

    id: str
    severity: Severity
    notice: str
    remedy: str
    source: str
    basis: Basis
    example: Example
    counterexample: Example
    lost: Lost | None = None
    relation: str = ""
    subject: str = ""
    when: Condition = Condition()
    unknown: Literal["note", "warn", "refuse", "nothing"] | None = None
    translates: bool = False
    test: str = ""


class Group(Value, frozen=True, forbid_unknown_fields=True):
    """One file of the catalogue."""

    schema: int
    title: str
    rules: tuple[Rule, ...]


@cache
def groups() -> dict[str, Group]:
    """The catalogue by group, in the order in which the rules are tried."""
    folder = resources.files("isthmus.divergence").joinpath("data/catalogue")
    return {
        name: from_json(folder.joinpath(f"{name}.json").read_bytes(), Group, where=f"{name}.json")
        for name in GROUPS
    }


@cache
def rules() -> tuple[Rule, ...]:
    """The catalogue, in the order in which the rules are tried."""
    return tuple(rule for group in groups().values() for rule in group.rules)


_NOTHING_KNOWN = HostEvidence()


def findings(
    guest: GuestEvidence,
    offer: CpuModel,
    shown: CpuModel,
    *,
    translatable: frozenset[str] = frozenset(),
    source: CpuModel | None = None,
    here: HostEvidence = _NOTHING_KNOWN,
    there: HostEvidence = _NOTHING_KNOWN,
) -> tuple[Finding, ...]:
    """What the guest would notice on a destination.

    :param offer: what the destination's CPU can do.
    :param shown: the CPU that the destination would show this guest.
    :param translatable: the features whose loss the armed translator covers.
    :param source: what the source's CPU can do, where it is known.
    :param here: the hypervisor of the source.
    :param there: the hypervisor of the destination.
    """
    situation = Situation(
        guest=guest,
        destination=offer,
        shown=shown,
        source=source,
        here=here,
        there=there,
        translatable=translatable,
    )
    found = [
        finding
        for rule in rules()
        if rule.lost is None
        for hit in _hits(rule, situation)
        if (finding := _speak(rule, hit, situation))
    ]
    lossy = [rule for rule in rules() if rule.lost is not None]
    for name in sorted(guest.shown.features - shown.features):
        hit = Hit(subject=name, evidence=f"shown at boot, missing on {offer.name}")
        tried = (
            _speak(rule, hit, situation) for rule in lossy if rule.lost and rule.lost.covers(name)
        )
        found.append(next(finding for finding in tried if finding))
    return tuple(found)


def _hits(rule: Rule, situation: Situation) -> list[Hit]:
    if rule.relation:
        return list(RELATIONS[rule.relation](situation))
    return [Hit(subject=rule.subject, evidence="")]


def _speak(rule: Rule, hit: Hit, situation: Situation) -> Finding | None:
    """The rule's finding on a subject; None where it does not apply."""
    asked = Situation(
        guest=situation.guest,
        destination=situation.destination,
        shown=situation.shown,
        source=situation.source,
        here=situation.here,
        there=situation.there,
        translatable=situation.translatable,
        subject=hit.subject,
    )
    judged = list(rule.when.parts(asked))
    truths: list[Truth] = [truth for truth, _ in judged]
    if False in truths:
        return None
    sure = hit.sure and None not in truths
    severity = rule.severity
    if not sure and rule.unknown is not None:
        if rule.unknown == "nothing":
            return None
        severity = Severity(rule.unknown)
    notice, remedy = rule.notice, rule.remedy
    if rule.translates and hit.subject in situation.translatable:
        severity = Severity.TRANSLATE
        notice = f"{notice}; the translator does it here, at some cost each time"
        remedy = "reboot the guest levelled when it suits"
    gaps = list(dict.fromkeys(asks for truth, asks in judged if truth is None and asks))
    evidence = [hit.evidence] if hit.evidence else []
    if gaps:
        evidence.append(f"not known: {'; '.join(gaps)}")
    return Finding(
        rule=rule.id,
        severity=severity,
        subject=hit.subject,
        notice=notice,
        remedy=remedy,
        source=rule.source,
        evidence="; ".join(evidence) or _between(situation),
        sure=sure,
    )


def _between(situation: Situation) -> str:
    return f"{situation.guest.shown.name} at boot, {situation.destination.name} there"


__all__ = [
    "GROUPS",
    "Finding",
    "Group",
    "GuestEvidence",
    "HostEvidence",
    "Rule",
    "findings",
    "groups",
    "rules",
]
