"""What Xen itself refuses of a guest that arrives, told beforehand and in Xen's own words.

Pure.  The general rules (:mod:`isthmus.divergence`) say what a guest would notice; these say what
the hypervisor and its toolstack would not take at all, whatever the guest does.
"""

from typing import Literal

from isthmus.cpu.model import CpuModel
from isthmus.divergence.finding import Finding, Severity
from isthmus.hypervisor.xen.host import GuestDomain, Host, Type

NO_OTHER_MAKER = (4, 22)
"""From this release on Xen takes no guest of the other maker (CHANGELOG.md, 4.22.0, Removed)."""

INTEL = "GenuineIntel"

_LEAVES: tuple[tuple[Literal["level", "xlevel"], int], ...] = (
    ("level", 0x0),
    ("xlevel", 0x80000000),
)


def admission(
    guest: GuestDomain, shown: CpuModel, source: Host, destination: Host, *, filtered: bool = True
) -> tuple[Finding, ...]:
    """What the destination would refuse, or take only with the stream rewritten.

    :param shown: the policy that the guest has been given at its source.
    :param filtered: whether our filter stands in the transport.
    """
    found = [
        *_leaves(guest, shown, destination),
        *_machine_checks(source, destination, filtered=filtered),
        *_hypervisors(guest, shown, source, destination),
    ]
    return tuple(found)


def _leaves(guest: GuestDomain, shown: CpuModel, destination: Host) -> list[Finding]:
    limit = destination.limits.get(guest.type.policy)
    if limit is None:
        return []
    found = []
    for name, leaf in _LEAVES:
        has, takes = shown.highest(name), limit.highest(name)
        if has is None or takes is None or has <= takes:
            continue
        found.append(
            Finding(
                rule="xen-highest-leaf",
                severity=Severity.REFUSE,
                subject=f"leaf {leaf:#x}",
                notice=f"Xen would say: Failed to set CPUID policy: leaf {leaf:08x} (22 = Invalid"
                f" argument): the guest was shown leaves up to {has:#x},"
                f" {destination.address} takes {takes:#x}",
                remedy="level the guest (isthmus level --for xen) and start it anew",
                source="Xen xen/lib/x86/policy.c, x86_cpu_policies_are_compatible; seen on 4.17",
                evidence="xen-cpuid -p on both hosts",
            )
        )
    return found


def _machine_checks(source: Host, destination: Host, *, filtered: bool) -> list[Finding]:
    if source.maker != INTEL or destination.maker == INTEL:
        return []
    return [
        Finding(
            rule="xen-machine-check-capabilities",
            severity=Severity.NOTE if filtered else Severity.REFUSE,
            subject="vmce.caps",
            notice="the filter rewrites the machine-check capabilities of a guest born on Intel"
            if filtered
            else "Xen would say: restore: unsupported MCA capabilities (supported: 0), where the"
            " guest was born on Intel",
            remedy="" if filtered else "let the filter stand in the transport",
            source="Xen xen/arch/x86/cpu/mcheck/vmce.c, vmce_restore_vcpu; seen on 4.17",
            evidence=f"{source.address} is Intel, {destination.address} is not",
        )
    ]


def _hypervisors(
    guest: GuestDomain, shown: CpuModel, source: Host, destination: Host
) -> list[Finding]:
    found = []
    if guest.type is Type.PV and not source.shadow:
        found.append(
            Finding(
                rule="xen-no-log-dirty",
                severity=Severity.REFUSE,
                subject="shadow paging",
                notice="Xen would say: Failed to enable logdirty: its hypervisor has no shadow"
                " paging, by which alone PV guests move live",
                remedy="a hypervisor with CONFIG_SHADOW_PAGING=y, or xl save and xl restore",
                source="Xen tools/libs/guest/xg_sr_save.c, enable_logdirty; seen on Debian's 4.17",
                evidence=f"virt_caps of {source.address}",
            )
        )
    if guest.type not in destination.types:
        found.append(
            Finding(
                rule="xen-no-virtualisation",
                severity=Severity.REFUSE,
                subject=guest.type.value,
                notice=f"{destination.address} runs no {guest.type.value} guests",
                remedy="turn SVM or VMX on in its firmware",
                source="Xen tools/xl/xl_info.c, virt_caps",
                evidence=f"virt_caps of {destination.address}",
            )
        )
    if destination.release >= NO_OTHER_MAKER and shown.vendor != destination.maker:
        found.append(
            Finding(
                rule="xen-other-maker-removed",
                severity=Severity.REFUSE,
                subject=shown.vendor,
                notice=f"Xen {destination.version} takes no guest that was shown another maker",
                remedy="keep Xen up to 4.21 on hosts that take guests of the other maker",
                source="Xen CHANGELOG.md, 4.22.0, Removed; commit e39e473188",
                evidence=f"xen_version of {destination.address}",
            )
        )
    if destination.release < source.release:
        found.append(
            Finding(
                rule="xen-older-release",
                severity=Severity.WARN,
                subject=destination.version,
                notice="Xen promises moves to the same or a newer release only",
                remedy=f"update {destination.address} first",
                source="Xen docs/misc/support-matrix; SUPPORT.md",
                evidence=f"{source.version} to {destination.version}",
            )
        )
    return found
