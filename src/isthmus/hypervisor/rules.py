"""What stands in the way of a move on one platform, as data: rules, and what they find.

A platform's rules are a file ``data/rules.json`` of its package.  Each names a relation of that
platform, code that finds the subjects it is about, and says what happens, why, what to do and where
that is written.  What the guest would notice of another CPU is not told here: that is the catalogue
of :mod:`isthmus.divergence`.

Pure but for reading that file.
"""

import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Literal

import msgspec

from isthmus.divergence.finding import Finding, Severity
from isthmus.divergence.rules import Basis
from isthmus.values import Value, from_json

_PLACE = re.compile(r"\{(\w+)\}")


class Rule(Value, frozen=True, forbid_unknown_fields=True):
    """One rule: ``relation`` finds its subjects, the texts may hold values of a hit in braces.

    ``unknown`` is the severity where the relation cannot tell (its own by default; ``nothing``: be
    silent).  ``literal`` is a piece of the platform's own message, as it stands in its programs.
    """

    id: str
    relation: str
    severity: Severity
    notice: str
    cause: str
    remedy: str
    source: str
    basis: Basis
    unknown: Literal["note", "warn", "refuse", "nothing"] | None = None
    literal: str = ""


class _Rules(Value, frozen=True, forbid_unknown_fields=True):
    schema: int
    rules: tuple[Rule, ...]


class Hit(Value, frozen=True):
    """A subject, what shows it, the values for the rule's texts; ``sure``: whether it is known."""

    subject: str
    evidence: str = ""
    values: dict[str, str] = msgspec.field(default_factory=dict)
    sure: bool = True


@functools.cache
def rules_of(platform: str) -> tuple[Rule, ...]:
    """Every rule of a platform's package, in the order in which they are told."""
    package = resources.files(f"isthmus.hypervisor.{platform}")
    data = package.joinpath("data/rules.json").read_bytes()
    return from_json(data, _Rules, where=f"{platform}/data/rules.json").rules


def finding_of(rule: Rule, hit: Hit, names: Mapping[str, str]) -> Finding | None:
    """What a rule says of one subject; None where it is silent.

    :param names: values that the texts of all its rules may hold (``here``, ``there`` …).
    """
    severity = rule.severity
    if not hit.sure and rule.unknown is not None:
        if rule.unknown == "nothing":
            return None
        severity = Severity(rule.unknown)
    values = {"subject": hit.subject, **names, **hit.values}

    def filled(text: str) -> str:
        return _PLACE.sub(lambda place: values.get(place[1]) or "?", text)

    return Finding(
        rule=rule.id,
        severity=severity,
        subject=hit.subject,
        notice=f"{filled(rule.notice)}: {filled(rule.cause)}",
        remedy=filled(rule.remedy),
        source=rule.source,
        evidence=hit.evidence,
        sure=hit.sure,
    )
