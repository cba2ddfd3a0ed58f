"""The record of a watch after a move: how it ended, and after a death why, and what to do. Pure.

It says which of the rules that preflight had spoken of (and somebody accepted, or the translator
was to cover) explains the death best.  Written beside the migration's journal.
"""

from collections.abc import Sequence

from isthmus.cpu.model import CpuModel
from isthmus.divergence.finding import Finding, Severity
from isthmus.errors import InputError
from isthmus.guest.console import Death
from isthmus.migration.watching import Outlook
from isthmus.scan.explain import explain, instruction
from isthmus.values import Value

SCHEMA_VERSION = 1
MAX_LINES = 60
LATE = "late-death"


class LikelyRule(Value, frozen=True):
    """A rule that may explain a death; ``sure``: it is about what the console shows."""

    rule: str
    subject: str
    notice: str
    remedy: str
    sure: bool


class WatchRecord(Value, frozen=True):
    """How a watch ended.

    ``at`` in Unix seconds; ``watched_s`` how long it lasted; ``console`` the last lines, safe for a
    terminal; ``instruction`` what killed it, in words; ``rules`` the likeliest first; ``advice``
    what to do, a sentence each; ``translated`` how many instructions were translated.
    """

    guest: str
    host: str
    migration: str
    at: float
    watched_s: float
    outlook: Outlook
    reason: str = ""
    warnings: tuple[str, ...] = ()
    console: tuple[str, ...] = ()
    instruction: str = ""
    rules: tuple[LikelyRule, ...] = ()
    advice: tuple[str, ...] = ()
    translated: int | None = None
    schema: int = SCHEMA_VERSION

    @classmethod
    def begin(cls, guest: str, host: str, migration: str) -> "WatchRecord":
        """The record of a watch that has not begun."""
        return cls(
            guest=guest, host=host, migration=migration, at=0.0, watched_s=0.0,
            outlook=Outlook.LIVES,
        )  # fmt: skip

    @property
    def died(self) -> bool:
        """Whether the guest is lost where it is."""
        return self.outlook in {Outlook.DIED, Outlook.RESTARTED}


def describe(
    record: WatchRecord,
    *,
    death: Death | None,
    findings: Sequence[Finding] = (),
    shown: CpuModel | None = None,
    offer: CpuModel | None = None,
    level_command: str = "",
) -> WatchRecord:
    """The record with what is known of the death, of the guest or of a program in it.

    :param findings: what preflight says of the guest on the host that it is on.
    :param shown: what it was shown at boot; ``offer``: what that host's CPU has.
    :param level_command: the command that computes a CPU for both hosts.
    """
    if not record.died and (death is None or not _missing(death, offer)):
        return record
    why = explain(death, shown, offer) if death and shown and offer else ""
    rules = tuple(_likely(findings, _missing(death, offer)))
    return record.replace(
        instruction=why,
        rules=rules,
        console=record.console or (death.lines if death else ()),
        advice=tuple(_advice(record, rules, level_command)) if record.died else (),
    )


def _missing(death: Death | None, offer: CpuModel | None) -> frozenset[str]:
    """The features for want of which the instruction that killed it cannot be executed."""
    if death is None or offer is None or not death.code:
        return frozenset()
    try:
        return instruction(death.code[death.offset :], death.bits).missing(offer)
    except InputError:
        return frozenset()


_ORDER = (Severity.REFUSE, Severity.TRANSLATE, Severity.WARN)


def _likely(findings: Sequence[Finding], missing: frozenset[str]) -> list[LikelyRule]:
    """The findings that explain it: those about what is missing, else the gravest ones."""
    named = [finding for finding in findings if finding.subject in missing]
    chosen = (
        named
        or sorted(
            (finding for finding in findings if finding.severity in _ORDER),
            key=lambda finding: (_ORDER.index(finding.severity), finding.rule),
        )[:5]
    )
    late = [finding for finding in findings if finding.rule == LATE and not named]
    return [
        LikelyRule(
            rule=finding.rule,
            subject=finding.subject,
            notice=finding.notice,
            remedy=finding.remedy,
            sure=finding in named,
        )
        for finding in (*chosen, *late)
    ]


def _advice(record: WatchRecord, rules: Sequence[LikelyRule], level_command: str) -> list[str]:
    """What to do, the most urgent first."""
    if record.outlook is Outlook.RESTARTED:
        first = "see whether it came up: it restarted on the host that it was moved to"
    else:
        first = (
            "nothing of its memory can be saved: keep its console and a dump if you want to know"
            " more, then start it anew"
        )
    lines = [first, "do not resume its former copy: the disk has moved on since"]
    if level_command:
        lines.append(f"boot it with a CPU that both hosts have: {level_command}")
    lines += [f"{rule.rule}: {rule.remedy}" for rule in rules if rule.sure]
    return lines
