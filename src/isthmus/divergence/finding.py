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
    """The findings that forbid the move: those to refuse whose rule the user did not accept."""
    return tuple(
        finding
        for finding in findings
        if finding.severity is Severity.REFUSE and finding.rule not in accepted
    )
