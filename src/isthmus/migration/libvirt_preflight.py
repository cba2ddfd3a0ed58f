"""Preflight of a domain: the catalogue's word on the CPU, and the rules of libvirt, as one verdict.

Pure: XML and documents in, a :class:`~isthmus.migration.preflight.Preflight` out.  Whoever has the
connections fetches four documents for each: the domain as it runs and as it is defined,
``capabilities`` and ``domcapabilities`` of both hosts.
"""

from collections.abc import Collection

from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.divergence.finding import blocking
from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.domain import Domain, read_domain
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.relations import Move
from isthmus.hypervisor.libvirt.rules import domain_findings
from isthmus.migration.preflight import Preflight

_HOSTS_OWN = frozenset({"host-passthrough", "maximum"})


def shown_cpu(live: bytes, here: LibvirtHost, *, where: str) -> CpuModel:
    """The CPU that a running domain was shown, as far as its XML and its host tell.

    A ``host-model`` has become a named one in the XML of a running domain.  With the host's own CPU
    there is nothing in it, so it is what the host can show.

    :raises InputError: neither tells.
    """
    domain = read_domain(live, where=where)
    if domain.cpu.mode in _HOSTS_OWN and here.cpu is not None:
        return here.cpu.replace(name=domain.name, source=f"{where}, {domain.cpu.mode}")
    try:
        return read_libvirt(live, name=domain.name, where=where)
    except InputError as error:
        if domain.cpu.mode or here.cpu is None:
            raise
        raise InputError(
            f"{where}: its definition has no <cpu>, so nobody knows what the guest was shown",
            remedy="isthmus level --apply gives it one that both hosts have; it counts from the"
            " next start",
        ) from error


def guest_facts(domain: Domain) -> dict[str, bool]:
    """What the definition says that the catalogue of divergences asks about."""
    kinds = {(device.element, device.kind) for device in domain.devices}
    return {
        "hyperv-enlightened": bool(domain.enlightenments),
        "confidential": bool(domain.confidential),
        "passed-through-device": any(
            element == "hostdev" or (element, kind) == ("interface", "hostdev")
            for element, kind in kinds
        ),
        "virtual-tpm": any(element == "tpm" for element, _ in kinds),
        "virtual-iommu": domain.iommu,
    }


def with_domain_rules(
    verdict: Preflight,
    running: Domain,
    defined: Domain | None,
    here: LibvirtHost,
    there: LibvirtHost,
    move: Move,
    *,
    accepted: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Preflight:
    """The verdict with what stands in the way of this domain, its devices and its storage.

    :param defined: its definition, None for a transient domain: only there ``host-model`` is to be
        seen.  Of a running guest it is told as what it is: a warning about the next start.
    :param accepted: rules, or ``rule:subject``, whose findings the operator takes the risk of.
    :param only: the rules to ask; None: all.
    """
    found = [
        finding
        for finding in domain_findings(running, here, there, move)
        if only is None or finding.rule in only
    ]
    told = {(finding.rule, finding.subject) for finding in found}
    if defined is not None and defined.cpu.mode == "host-model":
        found += [
            finding
            for finding in domain_findings(defined, here, there, move)
            if finding.rule == "libvirt-host-model" and (finding.rule, finding.subject) not in told
        ]
    findings = (*verdict.findings, *found)
    return verdict.replace(findings=findings, blocking=blocking(findings, accepted))
