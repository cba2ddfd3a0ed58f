"""Preflight of a libvirt domain: what of it and of the two hosts stands in a move's way.

The rules are data (``data/rules.json``): each names a relation of
:mod:`isthmus.hypervisor.libvirt.relations`, which finds the subjects it is about, and says what
happens, why, what to do and where that is written.  What the guest would notice of another CPU is
not told here: that is the catalogue of :mod:`isthmus.divergence`.

Pure: values in, findings out.
"""

import functools
import re
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from isthmus.divergence.finding import Finding, Severity
from isthmus.divergence.rules import Basis
from isthmus.hypervisor.libvirt.domain import Domain
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.relations import RELATIONS, Hit, Move
from isthmus.values import Value, from_json

_PLACE = re.compile(r"\{(\w+)\}")


class Rule(Value, frozen=True, forbid_unknown_fields=True):
    """One rule: ``relation`` finds its subjects, the texts may hold values of a hit in braces.

    ``unknown`` is the severity where the relation cannot tell (its own by default; ``nothing``: be
    silent).  ``literal`` is a piece of libvirt's own message, as it stands in its QEMU driver.
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


@functools.cache
def rules() -> tuple[Rule, ...]:
    """Every rule, in the order in which they are told."""
    data = resources.files("isthmus.hypervisor.libvirt").joinpath("data/rules.json").read_bytes()
    return from_json(data, _Rules, where="rules.json").rules


def domain_findings(
    domain: Domain, here: LibvirtHost, there: LibvirtHost, move: Move | None = None
) -> tuple[Finding, ...]:
    """What stands in the way of moving ``domain`` from ``here`` to ``there``.

    :param domain: as it runs (``virsh dumpxml``), or as it is defined (``--inactive``): a
        ``host-model`` is told of only by the second.
    :param move: how it is to be moved.
    """
    asked = move or Move()
    names = {"here": here.name, "there": there.name}
    return tuple(
        finding
        for rule in rules()
        for hit in RELATIONS[rule.relation](domain, here, there, asked)
        if (finding := _finding(rule, hit, names)) is not None
    )


def _finding(rule: Rule, hit: Hit, names: Mapping[str, str]) -> Finding | None:
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
