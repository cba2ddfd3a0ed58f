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


class Finding(Value, frozen=True):
    """One finding: the rule's id, what it is about, what the guest would notice, what to do.

    ``source`` names where the fact is from, ``evidence`` what made the rule apply here.
    """

    rule: str
    severity: Severity
    subject: str
    notice: str
    remedy: str
    source: str
    evidence: str


def blocking(findings: Sequence[Finding], accepted: Collection[str] = ()) -> tuple[Finding, ...]:
    """The findings that forbid the move: those to refuse that the user did not accept.

    :param accepted: rules, or ``rule:subject`` for one of a rule's findings only.
    """
    return tuple(
        finding
        for finding in findings
        if finding.severity is Severity.REFUSE
        and not {finding.rule, f"{finding.rule}:{finding.subject}"} & set(accepted)
    )
