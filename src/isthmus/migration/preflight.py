"""Preflight of a move between two hosts that this machine's QEMU plays: all checks, no step taken.

Decides what the destination shows the guest, what diverges, and whether the move may go ahead.
"""

from collections.abc import Collection, Mapping

from isthmus.baseline.shown import shown_on
from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence, HostEvidence
from isthmus.divergence.finding import Finding, Severity, blocking
from isthmus.divergence.rules import findings
from isthmus.errors import RefusedError
from isthmus.values import Value

SCHEMA_VERSION = 1


class Preflight(Value, frozen=True):
    """The outcome: what was found, what blocks, what the destination will show.

    ``crosses``: the hosts are known to be of two makers; only libvirt's moves look.
    ``needs_translation``: some finding is only covered by the translator.
    """

    guest: str
    source_host: str
    destination_host: str
    shown: CpuModel
    findings: tuple[Finding, ...]
    blocking: tuple[Finding, ...]
    crosses: bool = False
    schema: int = SCHEMA_VERSION

    @property
    def translated(self) -> frozenset[str]:
        """The features that the translator has to cover for the guest to live there."""
        translate = (f for f in self.findings if f.severity is Severity.TRANSLATE)
        return frozenset(finding.subject for finding in translate)

    @property
    def needs_translation(self) -> bool:
        """Whether the translator has to be armed."""
        return bool(self.translated)

    def require(self) -> None:
        """Raise :class:`RefusedError` naming what blocks, if anything does."""
        if not self.blocking:
            return
        first = self.blocking[0]
        subjects = ", ".join(sorted({finding.subject for finding in self.blocking}))
        raise RefusedError(
            f"{self.guest} cannot move to {self.destination_host}: {subjects}: {first.notice}",
            remedy=f"{first.remedy} (or take the risk: --accept-risk {first.rule})",
        )


def preflight(
    guest: str,
    evidence: GuestEvidence,
    source_host: str,
    offer: CpuModel,
    *,
    translatable: frozenset[str] = frozenset(),
    accepted: Collection[str] = (),
    hypervisor: str = "",
    manager: str = "",
    assured: Collection[str] = (),
    source: CpuModel | None = None,
    facts: Mapping[str, bool] | None = None,
) -> Preflight:
    """Check a guest against a destination host that offers ``offer``.

    :param hypervisor: what runs guests on both hosts (``kvm``, ``tcg`` …), empty if unknown.
    :param manager: what drives it there (``qemu`` …), empty if unknown.
    :param assured: what the mover sees to there: facts of a host (``data/facts.json``).
    :param source: what the source's CPU can do, where that is known.
    :param facts: what else is known of both hosts (``divergence/data/facts.json``).
    """
    shown = shown_on(evidence.shown, offer)
    known = dict(facts or {})
    here = HostEvidence(hypervisor=hypervisor, manager=manager, facts=known)
    there = here.replace(facts=known | dict.fromkeys(assured, True))
    found = findings(
        evidence, offer, shown, translatable=translatable, source=source, here=here, there=there
    )
    return Preflight(
        guest=guest,
        source_host=source_host,
        destination_host=offer.name,
        shown=shown,
        findings=found,
        blocking=blocking(found, accepted),
    )
