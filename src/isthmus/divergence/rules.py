"""The rules engine: a guest, its destination and the catalogue of divergences give findings.

Pure: values in, values out.  The rules are data (``data/rules.json``), tried in their order; each
feature that the guest was shown and the destination lacks gets the first rule that fits it.  The
last rule refuses: what no rule explains is not let through.  Rules with a ``between`` speak of the
guest and its destination as a whole; a function of that name in this module finds where they apply.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources

from isthmus.baseline.identity import AMD, INTEL, maker
from isthmus.baseline.level import HYPERCALLS
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.finding import Finding, Severity
from isthmus.values import Value, from_json


class GuestEvidence(Value, frozen=True):
    """What is known of the guest: the CPU it was shown at boot, its size in vCPUs and MiB.

    ``command_line`` is its kernel's, empty where unknown.
    """

    shown: CpuModel
    vcpus: int = 1
    memory_mib: int = 0
    command_line: str = ""


class When(Value, frozen=True, forbid_unknown_fields=True):
    """A rule's condition; every field that is given must hold.

    ``lost``: one of these is lost; ``lost_kind``: a feature of that kind is ("*": of any kind);
    ``lost_merge``: a feature that pools merge so.  ``between``: the condition of that name holds
    between guest and destination; nothing else may be given with it.
    """

    lost: tuple[str, ...] = ()
    lost_kind: str = ""
    lost_merge: str = ""
    between: str = ""
    translatable: bool | None = None
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
    found = [
        _finding(rule, subject, evidence)
        for rule in rules()
        if rule.when.between
        for subject, evidence in BETWEEN[rule.when.between](guest, offer, shown)
    ]
    for name in sorted(guest.shown.features - shown.features):
        rule = next(rule for rule in rules() if _fits(rule.when, name, guest, offer, translatable))
        found.append(_finding(rule, name, f"shown at boot, missing on {offer.name}"))
    return tuple(found)


def _fits(
    when: When, name: str, guest: GuestEvidence, offer: CpuModel, translatable: frozenset[str]
) -> bool:
    if not (when.lost or when.lost_kind or when.lost_merge):
        return False
    if when.lost and name not in when.lost:
        return False
    feature = FEATURES.get(name)
    if when.lost_kind not in {"", "*"} and (feature is None or feature.kind != when.lost_kind):
        return False
    if when.lost_merge and (feature is None or feature.merge != when.lost_merge):
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


Seen = Iterable[tuple[str, str]]
"""Where a condition holds: subjects, each with its evidence; nothing where it does not."""


def _identity_changes(guest: GuestEvidence, _offer: CpuModel, shown: CpuModel) -> Seen:
    for fact in ("vendor", "family", "model", "stepping"):
        born, there = getattr(guest.shown, fact), getattr(shown, fact)
        if born != there:
            yield fact, f"{born} would become {there}"


def _addresses_narrow(guest: GuestEvidence, offer: CpuModel, _shown: CpuModel) -> Seen:
    for fact in ("phys_bits", "linear_bits"):
        born, there = getattr(guest.shown, fact), getattr(offer, fact)
        if born is not None and there is not None and born > there:
            yield fact.replace("_", "-"), f"{born} bits at boot, {there} on {offer.name}"


def _tsc_rate_differs(guest: GuestEvidence, offer: CpuModel, _shown: CpuModel) -> Seen:
    born, there = guest.shown.tsc_khz, offer.tsc_khz
    # KVM takes 250 ppm for the same rate (Linux arch/x86/kvm/x86.c, tsc_tolerance_ppm).
    if born and there and abs(born - there) * 4000 > born:
        yield "tsc", f"{born} kHz at boot, {there} kHz on {offer.name}"


def _makers_differ(guest: GuestEvidence, offer: CpuModel, _shown: CpuModel) -> Seen:
    if maker(guest.shown.vendor) != maker(offer.vendor):
        yield "vendor", f"{guest.shown.vendor} at boot, {offer.name} is {offer.vendor}"


def _hypercalls_of_another_maker(guest: GuestEvidence, offer: CpuModel, shown: CpuModel) -> Seen:
    if maker(guest.shown.vendor) != maker(offer.vendor):
        for name in sorted(shown.features & HYPERCALLS):
            yield name, f"{guest.shown.vendor} at boot, {offer.name} is {offer.vendor}"


def _meltdown_unprotected(guest: GuestEvidence, offer: CpuModel, _shown: CpuModel) -> Seen:
    believes_safe = maker(guest.shown.vendor) == maker(AMD) or "rdctl-no" in guest.shown.features
    exposed = offer.vendor == INTEL and "rdctl-no" not in offer.features
    if believes_safe and exposed and "pti=on" not in guest.command_line.split():
        yield "rdctl-no", f"{guest.shown.vendor} at boot, {offer.name} does not state rdctl-no"


BETWEEN: Mapping[str, Callable[[GuestEvidence, CpuModel, CpuModel], Seen]] = {
    "identity-changes": _identity_changes,
    "addresses-narrow": _addresses_narrow,
    "tsc-rate-differs": _tsc_rate_differs,
    "makers-differ": _makers_differ,
    "hypercalls-of-another-maker": _hypercalls_of_another_maker,
    "meltdown-unprotected": _meltdown_unprotected,
}
"""The conditions between a guest and its destination, by the name that rules use."""
