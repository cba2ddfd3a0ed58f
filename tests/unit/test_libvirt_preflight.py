"""The two preflights of a domain become one verdict; what a guest was shown is found or not."""

import pytest
from test_libvirt_rules import AMD, INTEL, SAFE, cpu, domain

from isthmus.cpu.named import qemu_models
from isthmus.divergence.evidence import GuestEvidence, require_known_facts
from isthmus.errors import InputError, RefusedError
from isthmus.hypervisor.libvirt.domain import Domain
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.relations import Move
from isthmus.migration.libvirt_guest import by_hand, dialled, require_live
from isthmus.migration.libvirt_preflight import guest_facts, shown_cpu, with_domain_rules
from isthmus.migration.options import Options
from isthmus.migration.platforms import Request
from isthmus.migration.preflight import Preflight, preflight

BLOCK = "<disk type='block'><source dev='/dev/sdb'/><target dev='vda'/></disk>"
DEMANDS = "<cpu mode='custom'><model>EPYC</model><vendor>AMD</vendor></cpu>"
EPYC = qemu_models()["EPYC"]


def judged(
    running: Domain, defined: Domain | None = None, accepted: tuple[str, ...] = ()
) -> Preflight:
    base = preflight("web", GuestEvidence(shown=EPYC), "amd", EPYC.replace(name="intel"))
    assert not base.blocking
    return with_domain_rules(base, running, defined, AMD, INTEL, SAFE, accepted=accepted)


def test_a_rule_of_libvirts_blocks_until_it_is_accepted_by_name() -> None:
    stuck = judged(domain(devices=BLOCK))
    assert [finding.rule for finding in stuck.blocking] == ["libvirt-storage-device"]
    with pytest.raises(Exception, match="accept-risk libvirt-storage-device"):
        stuck.require()
    assert not judged(domain(devices=BLOCK), accepted=("libvirt-storage-device:vda",)).blocking
    assert judged(domain(devices=BLOCK), accepted=("libvirt-storage-device:vdb",)).blocking


def test_a_maker_that_the_definition_demands_does_not_stop_a_move_by_hand() -> None:
    """``host-model`` states ``<vendor>`` in every guest that runs with it."""
    host_model = domain(cpu=DEMANDS)
    assert {finding.rule for finding in judged(host_model).blocking} == {
        "libvirt-vendor-demanded",
        "libvirt-vendor-open",
    }
    assert not judged(by_hand(host_model, "AuthenticAMD")).blocking


def test_a_move_by_hand_is_not_made_otherwise_than_was_asked() -> None:
    """What it cannot do is refused, never left out in silence; TLS it can."""
    request = Request(guest="web", source="a", destination="b", options=Options())
    require_live(request)
    with pytest.raises(RefusedError, match="not moved with --postcopy, --parallel"):
        require_live(request.replace(postcopy=True, parallel=2))


def test_a_move_by_hand_leaves_this_machine_where_a_host_is_named() -> None:
    here = Request(guest="web", source="qemu:///a", destination="qemu:///b", options=Options())
    assert not dialled(here)
    assert dialled(here.replace(link="tcp://10.0.0.2:4000")) == "10.0.0.2"
    assert dialled(here.replace(peer="qemu+tcp://b.example/system")) == "b.example"
    assert dialled(here.replace(destination="qemu+ssh://root@b/system")) == "b"


def test_in_the_clear_it_leaves_this_machine_by_name_only() -> None:
    base = preflight("web", GuestEvidence(shown=EPYC), "amd", EPYC.replace(name="intel"))

    def stream(move: Move, *accepted: str, only: frozenset[str] | None = None) -> Preflight:
        return with_domain_rules(
            base, domain(), None, AMD, INTEL, move, accepted=accepted, only=only
        )

    rule = "libvirt-translated-in-clear"
    assert [finding.rule for finding in stream(Move(carried="tcp")).blocking] == [rule]
    assert [f.rule for f in stream(Move(carried="tcp"), only=frozenset({rule})).blocking] == [rule]
    assert not stream(Move(carried="tcp"), rule).blocking
    assert not stream(Move(carried="tcp", tls=True)).blocking
    assert not stream(Move(carried="socket")).blocking


def test_host_model_is_told_of_from_the_definition_of_a_running_guest() -> None:
    verdict = judged(domain(), defined=domain(cpu=cpu("host-model")))
    assert [finding.rule for finding in verdict.findings if "libvirt" in finding.rule] == [
        "libvirt-host-model"
    ]
    assert not verdict.blocking


def xml(cpu_element: str) -> bytes:
    return f"<domain type='kvm'><name>web</name>{cpu_element}</domain>".encode()


def test_what_a_guest_was_shown() -> None:
    named = shown_cpu(xml("<cpu mode='custom'><model>Nehalem</model></cpu>"), AMD, where="web")
    assert "sse4.2" in named.features and "sse4a" not in named.features
    assert named.vendor == "GenuineIntel"
    own = shown_cpu(xml("<cpu mode='host-passthrough'/>"), AMD, where="web")
    assert AMD.cpu is not None and own.features == AMD.cpu.features
    with pytest.raises(InputError, match="no <cpu>"):
        shown_cpu(xml(""), AMD, where="web")
    with pytest.raises(InputError):
        shown_cpu(xml("<cpu mode='host-passthrough'/>"), LibvirtHost(name="dark"), where="web")


def test_the_facts_of_a_definition_are_ones_that_the_catalogue_knows() -> None:
    facts = guest_facts(domain(devices="<iommu model='intel'/><hostdev type='pci'/>"))
    require_known_facts(facts, "guest")
    assert facts["virtual-iommu"] and facts["passed-through-device"] and not facts["confidential"]
