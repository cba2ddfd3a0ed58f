"""What Xen itself refuses of a guest that arrives, told beforehand and in Xen's own words.

The general rules (:mod:`isthmus.divergence`) say what a guest would notice; these say what the
hypervisor and its toolstack would not take at all, whatever the guest does.  Their texts are data
(``data/rules.json``, see :mod:`isthmus.hypervisor.rules`), here is whom they are about.

Pure: values in, findings out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import VENDORS
from isthmus.divergence.finding import Finding
from isthmus.hypervisor.rules import Hit, finding_of, rules_of
from isthmus.hypervisor.xen.host import GuestDomain, Host, Type
from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.rules import chosen
from isthmus.values import Value

NO_OTHER_MAKER = (4, 22)
"""From this release on Xen takes no guest of the other maker (CHANGELOG.md, 4.22.0, Removed)."""

_INTEL = VENDORS["Intel"]

_LEAVES: tuple[tuple[Literal["level", "xlevel"], int], ...] = (
    ("level", 0x0),
    ("xlevel", 0x80000000),
)


PLATFORM_INFO = 0xCE
"""The MSR that Xen compares besides the highest leaves (xen/lib/x86/policy.c)."""

CPUID_FAULTING = 1 << 31
"""Its bit: CPUID can be made to fault (Intel SDM vol. 4, MSR_PLATFORM_INFO)."""


class Arrival(Value, frozen=True):
    """A guest on its way: the policy that it was given at its source, both hosts.

    ``filtered``: whether our filter stands in the transport.
    """

    guest: GuestDomain
    shown: CpuModel
    source: Host
    destination: Host
    filtered: bool = True


def admission(
    guest: GuestDomain, shown: CpuModel, source: Host, destination: Host, *, filtered: bool = True
) -> tuple[Finding, ...]:
    """What the destination would refuse, or take only with the stream rewritten.

    :param shown: the policy that the guest has been given at its source.
    :param filtered: whether our filter stands in the transport.
    """
    arrival = Arrival(
        guest=guest, shown=shown, source=source, destination=destination, filtered=filtered
    )
    names = {
        "here": source.address, "there": destination.address,
        "from": source.version, "version": destination.version,
    }  # fmt: skip
    return tuple(
        finding
        for rule in rules_of("xen")
        for hit in RELATIONS[rule.relation](arrival)
        if (finding := finding_of(rule, hit, names)) is not None
    )


def _highest_leaf(arrival: Arrival) -> Iterator[Hit]:
    limit = arrival.destination.limits.get(arrival.guest.type.policy)
    if limit is None:
        return
    for name, leaf in _LEAVES:
        has, takes = arrival.shown.highest(name), limit.highest(name)
        if has is not None and takes is not None and has > takes:
            yield Hit(
                subject=f"leaf {leaf:#x}",
                evidence="xen-cpuid -p on both hosts",
                values={"leaf": f"{leaf:08x}", "has": f"{has:#x}", "takes": f"{takes:#x}"},
            )
    has, takes = _subleaves(arrival.shown), _subleaves(limit)
    if has is not None and takes is not None and has > takes:
        yield Hit(
            subject="leaf 0x7",
            evidence="xen-cpuid -p on both hosts",
            values={
                "leaf": f"{7:08x}, subleaf {0:08x}",
                "has": f"subleaf {has:#x} of 0x7",
                "takes": f"{takes:#x}",
            },
        )


def _subleaves(model: CpuModel) -> int | None:
    """The highest subleaf of leaf 7; None where the source has no raw CPUID."""
    return next((one.eax for one in model.leaves if (one.leaf, one.subleaf) == (7, 0)), None)


def _cpuid_faulting(*, rewritten: bool) -> Callable[[Arrival], Iterator[Hit]]:
    def relation(arrival: Arrival) -> Iterator[Hit]:
        kind = arrival.guest.type
        limit = arrival.destination.limits.get(kind.policy)
        if limit is None:
            return
        has = arrival.shown.msrs.get(PLATFORM_INFO, 0)
        if not has & ~limit.msrs.get(PLATFORM_INFO, 0) & CPUID_FAULTING:
            return
        cured = (
            arrival.filtered
            and kind is Type.PV
            and any(
                rule.record == "X86_MSR_POLICY.000000ce"
                for rule in chosen(rules(), arrival.destination.maker)
            )
        )
        if cured is rewritten:
            yield Hit(
                subject=f"MSR {PLATFORM_INFO:#x}",
                evidence="xen-cpuid -p on both hosts",
                values={"has": f"{has:#x}"},
            )

    return relation


def _machine_checks(*, filtered: bool) -> Callable[[Arrival], Iterator[Hit]]:
    def relation(arrival: Arrival) -> Iterator[Hit]:
        source, destination = arrival.source, arrival.destination
        if arrival.filtered is filtered and source.maker == _INTEL != destination.maker:
            yield Hit(
                subject="vmce.caps",
                evidence=f"{source.address} is Intel, {destination.address} is not",
            )

    return relation


def _no_log_dirty(arrival: Arrival) -> Iterator[Hit]:
    if arrival.guest.type is Type.PV and not arrival.source.shadow:
        yield Hit(subject="shadow paging", evidence=f"virt_caps of {arrival.source.address}")


def _no_virtualisation(arrival: Arrival) -> Iterator[Hit]:
    kind = arrival.guest.type
    if kind not in arrival.destination.types:
        yield Hit(subject=kind.value, evidence=f"virt_caps of {arrival.destination.address}")


def _other_maker_removed(arrival: Arrival) -> Iterator[Hit]:
    there, shown = arrival.destination, arrival.shown
    if there.release >= NO_OTHER_MAKER and shown.vendor != there.maker:
        yield Hit(subject=shown.vendor, evidence=f"xen_version of {there.address}")


def _older_release(arrival: Arrival) -> Iterator[Hit]:
    here, there = arrival.source, arrival.destination
    if there.release < here.release:
        yield Hit(subject=there.version, evidence=f"{here.version} to {there.version}")


RELATIONS: Mapping[str, Callable[[Arrival], Iterator[Hit]]] = {
    "highest-leaf": _highest_leaf,
    "cpuid-faulting": _cpuid_faulting(rewritten=False),
    "cpuid-faulting-rewritten": _cpuid_faulting(rewritten=True),
    "machine-checks": _machine_checks(filtered=False),
    "machine-checks-filtered": _machine_checks(filtered=True),
    "no-log-dirty": _no_log_dirty,
    "no-virtualisation": _no_virtualisation,
    "other-maker-removed": _other_maker_removed,
    "older-release": _older_release,
}
"""The relation of each name that a rule may have."""
