"""The rules engine: a guest, its destination and the catalogue of divergences give findings.

Pure: values in, values out.  The rules are data (``data/rules.json``), tried in their order; each
feature that the guest was shown and the destination lacks gets the first rule that fits it.  The
last rule refuses: what no rule explains is not let through.
"""

from collections.abc import Iterator
from functools import cache
from importlib import resources

from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.finding import Finding, Severity
from isthmus.values import Value, from_json


class GuestEvidence(Value, frozen=True):
    """What is known of the guest: the CPU it was shown at boot, its size in vCPUs and MiB."""

    shown: CpuModel
    vcpus: int = 1
    memory_mib: int = 0


class When(Value, frozen=True, forbid_unknown_fields=True):
    """A rule's condition; every field that is given must hold.

    ``lost``: one of these is lost; ``lost_kind``: a feature of that kind is ("*": of any kind).
    """

    lost: tuple[str, ...] = ()
    lost_kind: str = ""
    translatable: bool | None = None
    vendor_changes: bool | None = None
    destination_has: tuple[str, ...] = ()
    memory_mib_at_least: int = 0
    memory_mib_below: int | None = None


class Rule(Value, frozen=True, forbid_unknown_fields=True):
    """One divergence; see :class:`isthmus.divergence.finding.Finding` for the texts."""

    id: str
    when: When
    severity: Severity
    notice: str
    remedy: str
    source: str


class _Catalogue(Value, frozen=True):
    schema: int
    rules: tuple[Rule, ...]


@cache
def rules() -> tuple[Rule, ...]:
    """The catalogue, in the order in which the rules are tried."""
    data = resources.files("isthmus.divergence").joinpath("data/rules.json").read_bytes()
    return from_json(data, _Catalogue, where="rules.json").rules


def findings(
    guest: GuestEvidence,
    offer: CpuModel,
    shown: CpuModel,
    *,
    translatable: frozenset[str] = frozenset(),
) -> tuple[Finding, ...]:
    """What the guest would notice on a destination.

    :param offer: what the destination's CPU can do.
    :param shown: the CPU that the destination would show this guest.
    :param translatable: the features whose loss the armed translator covers.
    """
    found = list(_about_identity(guest, shown))
    for name in sorted(guest.shown.features - shown.features):
        rule = next(rule for rule in rules() if _fits(rule.when, name, guest, offer, translatable))
        found.append(_finding(rule, name, f"shown at boot, missing on {offer.name}"))
    return tuple(found)


def _about_identity(guest: GuestEvidence, shown: CpuModel) -> Iterator[Finding]:
    if guest.shown.vendor == shown.vendor:
        return
    for rule in rules():
        if rule.when.vendor_changes:
            yield _finding(rule, "vendor", f"{guest.shown.vendor} would become {shown.vendor}")


def _fits(
    when: When, name: str, guest: GuestEvidence, offer: CpuModel, translatable: frozenset[str]
) -> bool:
    if not when.lost and not when.lost_kind:
        return False
    if when.lost and name not in when.lost:
        return False
    feature = FEATURES.get(name)
    if when.lost_kind not in {"", "*"} and (feature is None or feature.kind != when.lost_kind):
        return False
    if when.translatable is not None and (name in translatable) is not when.translatable:
        return False
    if not offer.features.issuperset(when.destination_has):
        return False
    if guest.memory_mib < when.memory_mib_at_least:
        return False
    return when.memory_mib_below is None or guest.memory_mib < when.memory_mib_below


def _finding(rule: Rule, subject: str, evidence: str) -> Finding:
    return Finding(
        rule=rule.id,
        severity=rule.severity,
        subject=subject,
        notice=rule.notice,
        remedy=rule.remedy,
        source=rule.source,
        evidence=evidence,
    )
