"""What a guest would notice of a move, and which moves are refused for it: the engine."""

from typing import Any

import msgspec
import pytest

from isthmus.baseline.shown import shown_on
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.condition import Condition, Situation
from isthmus.divergence.evidence import GuestEvidence, HostEvidence, facts
from isthmus.divergence.examples import reference_cpus
from isthmus.divergence.finding import Finding, Severity, blocking, decide
from isthmus.divergence.rules import findings
from isthmus.divergence.truth import all_of, any_of, at_least, has_feature, negation, version

# What TCG offers of the two hosts of 2008 (QEMU 7.2, query-cpu-model-expansion).
COMMON = frozenset({
    "apic", "clflush", "cmov", "cx16", "cx8", "de", "fpu", "fxsr", "hypervisor", "lahf-lm", "lm",
    "mca", "mce", "mmx", "msr", "mtrr", "nx", "pae", "pat", "pge", "pni", "pse", "pse36", "sep",
    "sse", "sse2", "syscall", "tsc",
})  # fmt: skip
PHENOM = CpuModel(
    name="phenom", source="test", vendor="AuthenticAMD", family=16, model=2, stepping=3, level=5,
    xlevel=0x8000001A,
    features=COMMON | {
        "3dnow", "3dnowext", "abm", "mmxext", "monitor", "npt", "pdpe1gb", "popcnt", "rdtscp",
        "sse4a", "svm",
    },
)  # fmt: skip
PENRYN = CpuModel(
    name="Penryn", source="test", vendor="GenuineIntel", family=6, model=23, stepping=3, level=10,
    xlevel=0x80000008, features=COMMON | {"ssse3", "sse4.1"},
)  # fmt: skip
TRANSLATABLE = frozenset({"rdtscp", "sse4a", "popcnt", "monitor"})
TCG = HostEvidence(hypervisor="tcg")
KVM = HostEvidence(hypervisor="kvm")


def move(
    guest: CpuModel,
    offer: CpuModel,
    translatable: frozenset[str] = frozenset(),
    *,
    hypervisor: HostEvidence = TCG,
    **known: Any,
) -> dict[str, Finding]:
    evidence = GuestEvidence(shown=guest, **({"memory_mib": 256} | known))
    found = findings(
        evidence, offer, shown_on(guest, offer), translatable=translatable, here=hypervisor,
        there=hypervisor,
    )  # fmt: skip
    return {f"{finding.rule}:{finding.subject}": finding for finding in found}


def refused(found: dict[str, Finding]) -> set[str]:
    return {finding.subject for finding in blocking(list(found.values()))}


def test_the_old_pair_unlevelled_is_refused() -> None:
    assert refused(move(PHENOM, PENRYN)) == {"rdtscp", "sse4a", "popcnt", "monitor"}


def test_the_old_pair_translated_may_go() -> None:
    found = move(PHENOM, PENRYN, TRANSLATABLE)
    assert not refused(found)
    assert {f.subject for f in found.values() if f.severity is Severity.TRANSLATE} == TRANSLATABLE
    assert found["silent-lzcnt:abm"].severity is Severity.WARN
    assert found["nested:svm"].severity is Severity.WARN
    assert found["sse-has-mmxext:mmxext"].severity is Severity.NOTE
    assert found["3dnow:3dnowext"].severity is Severity.WARN


def test_the_old_pair_translated_may_go_though_the_hypervisor_is_not_known() -> None:
    assert not refused(move(PHENOM, PENRYN, TRANSLATABLE, hypervisor=HostEvidence()))


def test_translation_cannot_cover_what_never_traps() -> None:
    everything = frozenset(FEATURES)
    guest = PHENOM.replace(features=PHENOM.features | {"smap", "bmi1"})
    found = move(guest, PENRYN, everything)
    assert found["silent-lzcnt:abm"].severity is Severity.WARN
    assert found["smap-entry:smap"].severity is Severity.REFUSE
    assert found["silent-tzcnt:bmi1"].severity is Severity.REFUSE
    assert found["3dnow:3dnow"].severity is Severity.TRANSLATE


def test_lzcnt_weighs_what_is_known_of_the_guest() -> None:
    unknown = move(PHENOM, PENRYN)["silent-lzcnt:abm"]
    assert (unknown.severity, unknown.sure) == (Severity.WARN, False)
    assert "what its programs use" in unknown.evidence
    used = move(PHENOM, PENRYN, uses=frozenset({"abm"}))["silent-lzcnt:abm"]
    assert (used.severity, used.sure) == (Severity.REFUSE, True)
    unused = move(PHENOM, PENRYN, uses=frozenset())
    assert unused["silent-lzcnt-unused:abm"].severity is Severity.NOTE
    assert "silent-lzcnt:abm" not in unused


@pytest.mark.parametrize(("memory_mib", "blocks"), [(0, True), (1023, False), (1024, True)])
def test_gib_pages_matter_from_one_gib_on_and_where_memory_is_not_known(
    memory_mib: int, blocks: bool
) -> None:
    found = move(PHENOM, PENRYN, TRANSLATABLE, memory_mib=memory_mib)
    assert ("pdpe1gb" in refused(found)) is blocks


@pytest.mark.parametrize("hypervisor", [TCG, KVM, HostEvidence()])
def test_a_levelled_guest_loses_nothing(hypervisor: HostEvidence) -> None:
    guest = PENRYN.replace(features=COMMON, level=5)
    found = move(guest, PHENOM, hypervisor=hypervisor)
    lost = [f for f in found.values() if f.evidence.startswith("shown at boot")]
    assert not lost
    if hypervisor is TCG:
        warnings = {f.rule for f in found.values() if f.severity is not Severity.NOTE}
        assert warnings == {"fxsave-leak", "null-segment-base"}  # flaws of old AMD silicon


def test_entry_registers_of_a_guest_of_the_other_maker() -> None:
    intel = PENRYN.replace(features=COMMON)
    amd = PHENOM.replace(features=COMMON)
    for guest, host, subject, rule in (
        (intel, PHENOM, "cstar", "compat-entry-at-zero"),
        (amd, PENRYN, "sysenter", "sysenter-cut-short"),
    ):
        assert refused(move(guest, host, hypervisor=KVM)) == {subject}
        assert not refused(move(guest, host, hypervisor=TCG))
        unknown = move(guest, host, hypervisor=HostEvidence())[f"{rule}:{subject}"]
        assert (unknown.severity, unknown.sure) == (Severity.WARN, False)
        repaired = HostEvidence(hypervisor="kvm", facts={"repairs-entry-msrs": True})
        assert not refused(move(guest, host, hypervisor=repaired))
        assert not refused(move(guest, host, hypervisor=KVM, facts={"trusts-its-programs": True}))


def test_a_paravirtual_guest_has_no_entry_registers_of_its_own() -> None:
    """SYSCALL and SYSENTER of its 32-bit programs enter Xen, whose registers are its host's."""
    xen = HostEvidence(hypervisor="xen", version="4.17")
    for guest, host in ((PENRYN, PHENOM), (PHENOM, PENRYN)):
        shown = guest.replace(features=COMMON)
        assert refused(move(shown, host, hypervisor=xen))
        assert not refused(move(shown, host, hypervisor=xen, facts={"xen-pv": True}))


def test_a_changed_identity_is_refused() -> None:
    found = findings(GuestEvidence(shown=PHENOM), PENRYN, PENRYN)
    changed = {f.subject for f in found if f.rule == "identity-shown"}
    assert changed == {"vendor", "family", "model"}


def test_conditions_between_guest_and_host() -> None:
    guest = PHENOM.replace(features=COMMON | {"kvm-pv-unhalt"}, phys_bits=48, tsc_khz=2_000_000)
    host = PENRYN.replace(features=COMMON | {"kvm-pv-unhalt"}, phys_bits=38, tsc_khz=2_500_000)
    found = move(guest, host)
    assert found["hypercall-instruction:kvm-pv-unhalt"].severity is Severity.REFUSE
    assert found["address-width:phys-bits"].severity is Severity.REFUSE
    assert found["tsc-rate:tsc"].severity is Severity.WARN
    assert found["sec-meltdown:meltdown"].severity is Severity.WARN
    assert "sec-meltdown:meltdown" not in move(guest, host, command_line="quiet pti=on")
    cured = host.replace(features=host.features | {"rdctl-no"}, tsc_khz=2_000_100, phys_bits=48)
    rest = move(guest, cured)
    assert not {"address-width:phys-bits", "tsc-rate:tsc", "sec-meltdown:meltdown"} & rest.keys()
    assert not move(guest, guest)


def test_an_unknown_feature_is_refused() -> None:
    guest = PENRYN.replace(features=PENRYN.features | {"of-tomorrow"})
    assert refused(move(guest, PENRYN)) == {"of-tomorrow"}


def test_every_feature_has_a_rule_for_its_loss() -> None:
    guest = PENRYN.replace(features=frozenset(FEATURES))
    nothing = guest.replace(features=frozenset())
    for maker in (PHENOM, PENRYN):
        found = findings(GuestEvidence(shown=guest), maker.replace(features=frozenset()), nothing)
        lost = [f for f in found if f.evidence.startswith("shown at boot")]
        assert sorted(f.subject for f in lost) == sorted(FEATURES)


def test_no_instruction_is_let_through_by_the_rules_of_last_resort() -> None:
    """A feature that programs or kernels execute needs a rule that knows it by name."""
    guest = PENRYN.replace(features=frozenset(FEATURES))
    found = findings(
        GuestEvidence(shown=guest), PENRYN.replace(features=frozenset()),
        guest.replace(features=frozenset()),
    )  # fmt: skip
    unnamed = {f.subject for f in found if f.rule in {"lost", "kernel", "mitigation"}}
    assert {name for name in unnamed if FEATURES[name].kind == "instruction"} == set()


def test_accepting_one_finding_accepts_no_other() -> None:
    found = list(move(PHENOM, PENRYN).values())
    left = {f.subject for f in blocking(found, {"sse4a:sse4a"})}
    assert left == {"rdtscp", "popcnt", "monitor"}
    assert {f.subject for f in blocking(found, {"rdtscp"})} == {"sse4a", "popcnt", "monitor"}
    assert {f.subject for f in blocking(found, {"abm"})} == {f.subject for f in blocking(found)}


def test_a_decision_says_what_was_accepted_and_what_was_idle() -> None:
    found = list(move(PHENOM, PENRYN, frozenset({"rdtscp"})).values())
    decision = decide(found, ["sse4a", "popcnt", "idle-mwait", "no-such-rule"])
    assert decision.allowed
    assert {f.subject for f in decision.accepted} == {"sse4a", "popcnt", "monitor"}
    assert {f.subject for f in decision.translated} == {"rdtscp"}
    assert decision.idle == ("no-such-rule",)
    assert not decide(found).allowed


# The language of conditions.


def test_three_values() -> None:
    assert all_of([]) is True
    assert any_of([]) is False
    assert all_of([True, None]) is None
    assert all_of([False, None]) is False
    assert any_of([False, None]) is None
    assert any_of([True, None]) is True
    assert [negation(t) for t in (True, False, None)] == [False, True, None]


def judge(condition: dict[str, object], **known: Any) -> bool | None:
    guest = GuestEvidence(shown=PHENOM, **known)
    situation = Situation(guest=guest, destination=PENRYN, shown=PENRYN, there=KVM, subject="abm")
    return msgspec.convert(condition, Condition).holds(situation)


@pytest.mark.parametrize(
    ("condition", "known", "truth"),
    [
        ({}, {}, True),
        ({"born": {"maker": ["AMD"]}}, {}, True),
        ({"born": {"maker": ["Intel"]}}, {}, False),
        ({"born": {"has": ["sse4a", "rdtscp"], "lacks": ["avx"]}}, {}, True),
        ({"born": {"has_any": ["avx", "sse4a"]}}, {}, True),
        ({"destination": {"generation": ["Penryn"], "family": [6], "models": [23]}}, {}, True),
        ({"destination": {"phys_bits_below": 40}}, {}, None),
        ({"source": {"maker": ["AMD"]}}, {}, None),
        ({"there": {"hypervisor": ["kvm"]}}, {}, True),
        ({"there": {"hypervisor": ["xen"]}}, {}, False),
        ({"here": {"hypervisor": ["kvm"]}}, {}, None),
        ({"there": {"hypervisor": ["kvm"], "version_from": "6.1"}}, {}, None),
        ({"guest": {"system": ["linux"]}}, {}, None),
        ({"guest": {"system": ["linux"]}}, {"system": "windows"}, False),
        ({"guest": {"kernel_from": "6.1.5"}}, {"kernel": "6.1.0-56-cloud-amd64"}, False),
        ({"guest": {"kernel_from": "6.1"}}, {"kernel": "6.1.0-56-cloud-amd64"}, True),
        ({"guest": {"kernel_before": "6.15"}}, {"kernel": "6.9"}, True),
        ({"guest": {"word": ["pti=on"]}}, {}, None),
        ({"guest": {"word": ["pti=on"]}}, {"command_line": "pti=off"}, False),
        ({"guest": {"uses_it": True}}, {"uses": frozenset({"abm"})}, True),
        ({"guest": {"uses_it": False}}, {"uses": frozenset({"abm"})}, False),
        ({"guest": {"facts": {"nested-guests": False}}}, {}, None),
        (
            {"guest": {"facts": {"nested-guests": False}}},
            {"facts": {"nested-guests": False}},
            True,
        ),
        ({"known": {"guest": {"word": ["pti=on"]}}}, {}, False),
        ({"none": [{"known": {"guest": {"word": ["pti=on"]}}}]}, {}, True),
        ({"none": [{"guest": {"word": ["pti=on"]}}]}, {}, None),
        ({"any": [{"born": {"maker": ["AMD"]}}, {"guest": {"word": ["x"]}}]}, {}, True),
        ({"all": [{"born": {"maker": ["Intel"]}}, {"guest": {"word": ["x"]}}]}, {}, False),
        ({"exposed": "meltdown"}, {}, True),
    ],
)
def test_a_condition_is_judged_in_three_values(
    condition: dict[str, object], known: dict[str, Any], truth: bool | None
) -> None:
    assert judge(condition, **known) is truth


def test_a_misspelt_condition_is_no_condition() -> None:
    with pytest.raises(msgspec.ValidationError):
        judge({"borne": {"maker": ["AMD"]}})


def test_versions() -> None:
    assert version("6.1.0-56-cloud-amd64") == (6, 1, 0)
    assert version("v10.0.2 (Debian)") == (10, 0, 2)
    assert version("unknown") is None
    assert at_least("10.0", "9.2") is True
    assert at_least("", "9.2") is None


def test_a_bit_that_the_source_could_not_read_is_not_known() -> None:
    silent = PENRYN.replace(unknown=("feature MSRs",))
    assert has_feature(silent, "rdctl-no") is None
    assert has_feature(silent, "avx") is False
    assert has_feature(silent, "ssse3") is True
    cpuinfo = PENRYN.replace(unknown=("features that the kernel has no name for or turned off",))
    assert has_feature(cpuinfo, "mds-no") is None


def test_hosts_and_guests_state_different_facts() -> None:
    assert facts()["tsc-scaling"].of == "host"
    assert facts()["nested-guests"].of == "guest"


def test_every_pair_of_reference_cpus_is_judged() -> None:
    for born in reference_cpus().values():
        for host in reference_cpus().values():
            found = move(born, host, hypervisor=KVM)
            assert born is not host or not refused(found), (born.name, refused(found))
