"""Preflight of a libvirt domain: what of it and of the two hosts stands in a move's way.

Each rule of ``data/rules.json`` (:mod:`isthmus.hypervisor.rules`) names a relation of
:mod:`isthmus.hypervisor.libvirt.relations`.

Pure: values in, findings out.
"""

from isthmus.divergence.finding import Finding
from isthmus.hypervisor.libvirt.domain import Domain
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.relations import RELATIONS, Move
from isthmus.hypervisor.rules import Rule, finding_of, rules_of


def rules() -> tuple[Rule, ...]:
    """Every rule, in the order in which they are told."""
    return rules_of("libvirt")


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
        if (finding := finding_of(rule, hit, names)) is not None
    )
