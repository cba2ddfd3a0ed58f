"""A finding: a divergence that applies to this guest, this source and this destination."""

import enum
from collections.abc import Collection, Sequence

from isthmus.values import Value


class Severity(enum.StrEnum):
    """What a finding means for the move."""

    NOTE = "note"
    TRANSLATE = "translate"
    WARN = "warn"
    REFUSE = "refuse"

    @property
    def rank(self) -> int:
        """Where it stands between a note (0) and a refusal."""
        return list(Severity).index(self)


class Finding(Value, frozen=True):
    """One finding: the rule's id, what it is about, what the guest would notice, what to do.

    ``source`` names where the fact is from, ``evidence`` what made the rule apply here.  ``sure``
    is False where the evidence could not tell and the rule applies to be on the safe side.
    """

    rule: str
    severity: Severity
    subject: str
    notice: str
    remedy: str
    source: str
    evidence: str
    sure: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What accepts it: its rule, or ``rule:subject`` for this finding alone."""
        return frozenset({self.rule, f"{self.rule}:{self.subject}"})


class Decision(Value, frozen=True):
    """Whether a move may go ahead.

    ``blocking`` forbids it, ``accepted`` would have but was accepted by name, ``translated`` needs
    an armed translator; ``idle`` are names that were accepted and block nothing.
    """

    allowed: bool
    blocking: tuple[Finding, ...]
    accepted: tuple[Finding, ...]
    translated: tuple[Finding, ...]
    idle: tuple[str, ...]


def decide(findings: Sequence[Finding], accepted: Collection[str] = ()) -> Decision:
    """Decide on a move.  What is not known has been refused by its rule already.

    :param accepted: rules, or ``rule:subject`` for one of a rule's findings only.
    """
    refusing = [finding for finding in findings if finding.severity is Severity.REFUSE]
    names = frozenset(accepted)
    blocking = tuple(finding for finding in refusing if not finding.names & names)
    used = frozenset[str]().union(*(finding.names for finding in refusing))
    return Decision(
        allowed=not blocking,
        blocking=blocking,
        accepted=tuple(finding for finding in refusing if finding.names & names),
        translated=tuple(f for f in findings if f.severity is Severity.TRANSLATE),
        idle=tuple(sorted(names - used)),
    )


def blocking(findings: Sequence[Finding], accepted: Collection[str] = ()) -> tuple[Finding, ...]:
    """The findings that forbid the move; see :func:`decide`."""
    return decide(findings, accepted).blocking
