"""What a guest would notice of a move, and which moves are refused for it."""

import pytest

from isthmus.baseline.shown import shown_on
from isthmus.cpu.features import FEATURES
from isthmus.cpu.model import CpuModel
from isthmus.divergence.finding import Finding, Severity, blocking
from isthmus.divergence.rules import BETWEEN, GuestEvidence, findings, rules

# What TCG offers of the two hosts of 2008 (QEMU 7.2, query-cpu-model-expansion).
COMMON = frozenset({
    "apic", "clflush", "cmov", "cx16", "cx8", "de", "fpu", "fxsr", "hypervisor", "lahf-lm", "lm",
    "mca", "mce", "mmx", "msr", "mtrr", "nx", "pae", "pat", "pge", "pni", "pse", "pse36", "sep",
    "sse", "sse2", "syscall", "tsc",
})  # fmt: skip
PHENOM = CpuModel(
    name="phenom",
    source="test",
    vendor="AuthenticAMD",
    family=16,
    model=2,
    stepping=3,
    level=5,
    xlevel=0x8000001A,
    features=COMMON
    | {
        "3dnow",
        "3dnowext",
        "abm",
        "mmxext",
        "monitor",
        "npt",
        "pdpe1gb",
        "popcnt",
        "rdtscp",
        "sse4a",
        "svm",
    },
)
PENRYN = CpuModel(
    name="Penryn", source="test", vendor="GenuineIntel", family=6, model=23, stepping=3, level=10,
    xlevel=0x80000008, features=COMMON | {"ssse3", "sse4.1"},
)  # fmt: skip
TRANSLATABLE = frozenset({"rdtscp", "sse4a", "popcnt", "monitor"})


def move(
    guest: CpuModel,
    offer: CpuModel,
    translatable: frozenset[str] = frozenset(),
    memory_mib: int = 256,
    command_line: str = "",
) -> dict[str, Finding]:
    evidence = GuestEvidence(shown=guest, memory_mib=memory_mib, command_line=command_line)
    found = findings(evidence, offer, shown_on(guest, offer), translatable=translatable)
    return {f"{finding.rule}:{finding.subject}": finding for finding in found}


def test_the_old_pair_unlevelled_is_refused() -> None:
    refused = {
        finding.subject
        for finding in move(PHENOM, PENRYN).values()
        if finding.severity is Severity.REFUSE
    }
    assert refused == {"rdtscp", "sse4a", "popcnt", "monitor"}


def test_the_old_pair_translated_may_go() -> None:
    found = move(PHENOM, PENRYN, TRANSLATABLE)
    assert not blocking(list(found.values()))
    assert {f.subject for f in found.values() if f.severity is Severity.TRANSLATE} == TRANSLATABLE
    assert found["silent-lzcnt:abm"].severity is Severity.WARN
    assert found["nested:svm"].severity is Severity.WARN
    assert found["sse-has-mmxext:mmxext"].severity is Severity.NOTE
    assert found["3dnow:3dnowext"].severity is Severity.WARN


def test_translation_cannot_cover_what_never_traps() -> None:
    everything = frozenset(FEATURES)
    guest = PHENOM.replace(features=PHENOM.features | {"smap", "bmi1"})
    found = move(guest, PENRYN, everything)
    assert found["silent-lzcnt:abm"].severity is Severity.WARN
    assert found["smap-entry:smap"].severity is Severity.REFUSE
    assert found["silent-tzcnt:bmi1"].severity is Severity.REFUSE
    assert found["3dnow-translated:3dnow"].severity is Severity.TRANSLATE


@pytest.mark.parametrize(("memory_mib", "refused"), [(1023, False), (1024, True)])
def test_gib_pages_matter_from_one_gib_on(memory_mib: int, refused: bool) -> None:
    found = move(PHENOM, PENRYN, TRANSLATABLE, memory_mib=memory_mib)
    assert any(f.subject == "pdpe1gb" for f in blocking(list(found.values()))) is refused


def test_a_levelled_guest_loses_nothing() -> None:
    guest = PENRYN.replace(features=COMMON, level=5)
    assert not [f for f in move(guest, PHENOM).values() if f.severity is not Severity.NOTE]


def test_a_changed_identity_is_refused() -> None:
    found = findings(GuestEvidence(shown=PHENOM), PENRYN, PENRYN, translatable=frozenset())
    changed = {f.subject for f in found if f.rule == "identity-shown"}
    assert changed == {"vendor", "family", "model"}


def test_conditions_between_guest_and_host() -> None:
    guest = PHENOM.replace(features=COMMON | {"kvm-pv-unhalt"}, phys_bits=48, tsc_khz=2_000_000)
    host = PENRYN.replace(features=COMMON | {"kvm-pv-unhalt"}, phys_bits=38, tsc_khz=2_500_000)
    found = move(guest, host)
    assert found["hypercall-instruction:kvm-pv-unhalt"].severity is Severity.REFUSE
    assert found["address-width:phys-bits"].severity is Severity.REFUSE
    assert found["tsc-rate:tsc"].severity is Severity.WARN
    assert found["meltdown:rdctl-no"].severity is Severity.WARN
    assert not {"meltdown:rdctl-no"} & move(guest, host, command_line="quiet pti=on").keys()
    cured = host.replace(features=host.features | {"rdctl-no"}, tsc_khz=2_000_100, phys_bits=48)
    assert move(guest, cured).keys() == {
        "hypercall-instruction:kvm-pv-unhalt", "system-call-32:vendor",
    }  # fmt: skip
    assert not move(guest, guest)


def test_an_unknown_feature_is_refused() -> None:
    guest = PENRYN.replace(features=PENRYN.features | {"of-tomorrow"})
    assert [f.subject for f in blocking(list(move(guest, PENRYN).values()))] == ["of-tomorrow"]


def test_every_feature_has_a_rule_for_its_loss() -> None:
    guest = PENRYN.replace(features=frozenset(FEATURES))
    found = findings(
        GuestEvidence(shown=guest), PENRYN, guest.replace(features=frozenset()),
        translatable=frozenset(),
    )  # fmt: skip
    lost = [f for f in found if f.subject in FEATURES and f.evidence.startswith("shown at boot")]
    assert {f.subject for f in lost} == set(FEATURES)


def test_accepting_one_finding_accepts_no_other() -> None:
    found = list(move(PHENOM, PENRYN).values())
    left = blocking(found, {"lost:sse4a"})
    assert {f.subject for f in left} == {"rdtscp", "popcnt", "monitor"}
    assert {f.subject for f in blocking(found, {"lost"})} == {"rdtscp", "monitor"}
    assert {f.subject for f in blocking(found, {"sse4a"})} == {f.subject for f in blocking(found)}


def test_the_catalogue_is_sound() -> None:
    assert len({rule.id for rule in rules()}) == len(rules())
    for rule in rules():
        when = rule.when
        assert set(when.lost) <= FEATURES.keys(), rule.id
        assert bool(when.between) != bool(when.lost or when.lost_kind or when.lost_merge), rule.id
        assert not when.between or when.between in BETWEEN
        assert rule.notice
        assert rule.remedy
        assert rule.source
