"""A guest goes from an AMD host to an Intel host and back, live, both with real KVM."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kvm_cases import need_lab_hosts
from kvm_lab import Lab, lab_of, wait_for_hops, wait_for_more, wait_for_words

from isthmus.cpu.model import CpuModel
from isthmus.values import from_json

pytestmark = [pytest.mark.lab, pytest.mark.timeout(2400)]

AMD, INTEL = "kvm:epyc", "kvm:haswell"
OLD_AMD = "kvm:phenom"

# The level of this pair shows Intel's identity, and its guest is to go to AMD: the rule that speaks
# against it is about programs of the guest that attack it, and this one has none.
RISK = ("--accept-risk", "compat-entry-at-zero")

# And for a guest that saw AMD: it has one vCPU, so it kicks none, and no 32-bit programs.
UNLEVELLED_RISK = (
    "--accept-risk", "sysenter-cut-short", "--accept-risk", "hypercall-instruction",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_lab_hosts(intel=True)
    with lab_of(AMD, OLD_AMD, INTEL) as up:
        yield up


def test_each_maker_has_its_own_kvm(lab: Lab) -> None:
    hosts = json.loads(lab.isthmus("lab", "kvm", "status", "--json"))
    assert {host["name"]: host["kvm"] for host in hosts} == {
        "epyc": "kvm_amd", "phenom": "kvm_amd", "haswell": "kvm_intel",
    }  # fmt: skip


def test_there_and_back_without_a_gap_in_its_reports(lab: Lab) -> None:
    lab.isthmus("guest", "start", "far", "--host", AMD, "--level-with", INTEL, "--memory", "128")
    try:
        for host in (INTEL, AMD):
            record = lab.moved("far", host, *RISK)
            assert record["figures"]["stopped_ms"] is None, "two clocks are not compared"
        verdict = wait_for_hops(lab, "far", 2)
        assert verdict.ok, verdict.faults
        assert verdict.clocksource == "kvm-clock"
        # What no level can hide: the two makers' estimates differ in their last bits.
        assert {note.kind for note in verdict.notes} == {"approximation"}
        # Stated, not left to QEMU, which shows the maker of the host it runs on.
        (guest,) = json.loads(lab.isthmus("guest", "list", "--json"))
        shown = from_json(json.dumps(guest["shown"]), CpuModel)
        assert f"vendor={shown.vendor}" in guest["spec"]["cpu"]
    finally:
        lab.isthmus("guest", "stop", "far")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("home", "start", "risk"),
    [(AMD, ("--level-with", INTEL), RISK), (OLD_AMD, (), UNLEVELLED_RISK)],
    ids=["levelled", "translated"],
)
def test_five_round_trips(
    lab: Lab, home: str, start: tuple[str, ...], risk: tuple[str, ...]
) -> None:
    """The payload's sequence is unbroken, and every checksum right."""
    lab.isthmus("guest", "start", "often", "--host", home, *start, "--memory", "128")
    try:
        for _ in range(5):
            for host in (INTEL, home):
                lab.moved("often", host, *risk)
        verdict = wait_for_hops(lab, "often", 10)
        # What the unlevelled one is shown abroad is less than at home, as it is told beforehand.
        allowed = set() if start else {"cpuid"}
        assert {fault.kind for fault in verdict.faults} <= allowed, verdict.faults
        if not start:
            assert verdict.instructions["extrq"] > 0
    finally:
        lab.isthmus("guest", "stop", "often")


def test_what_intel_lacks_is_translated_by_kvms_guest_debugging(lab: Lab) -> None:
    """3DNow! and SSE4a, which no Intel CPU has: dead without, alive with."""
    lab.isthmus("guest", "start", "born", "--host", OLD_AMD, "--memory", "128")
    try:
        said = lab.isthmus(
            "migrate", "born", "--to", INTEL, "--no-translate", *UNLEVELLED_RISK, status=3
        )
        assert "sse4a" in said, "without translation it is refused"
        lab.moved("born", INTEL, *UNLEVELLED_RISK)
        # A trap there costs 40 ms, or many times that where other work shares this machine.
        wait_for_more(lab, "born", lab.verdict("born").instructions, ("extrq",))
        verdict = lab.verdict("born")
        # That it is shown less than at home is the price; nothing else may have changed.
        assert {fault.kind for fault in verdict.faults} <= {"cpuid"}, verdict.faults
    finally:
        lab.isthmus("guest", "stop", "born")


@pytest.mark.slow
def test_what_intel_lacks_is_translated_by_the_module_in_the_guests_kernel(lab: Lab) -> None:
    """The same guest, there and back, with nothing armed outside it."""
    lab.isthmus("guest", "start", "served", "--host", OLD_AMD, "--module", "--memory", "128")
    try:
        for host in (INTEL, OLD_AMD):
            done = lab.verdict("served").instructions
            record = lab.moved("served", host, *UNLEVELLED_RISK)
            assert record["plan"]["destination"]["translator"] is None
            if host == INTEL:
                assert record["plan"]["translation"]["placement"] == "inside"
            wait_for_more(lab, "served", done, ("extrq", "pfadd"))
        verdict = lab.verdict("served")
        assert {fault.kind for fault in verdict.faults} <= {"cpuid"}, verdict.faults
    finally:
        lab.isthmus("guest", "stop", "served")


@pytest.mark.slow
def test_through_a_file_from_maker_to_maker(lab: Lab, tmp_path: Path) -> None:
    """Where the hosts cannot reach each other: by way of this machine, standing still."""
    lab.isthmus("guest", "start", "kept", "--host", AMD, "--level-with", INTEL, "--memory", "128")
    try:
        for host in (INTEL, AMD):
            record = lab.moved("kept", host, "--through", str(tmp_path / "state"), *RISK)
            assert record["figures"]["moved_bytes"] > 16 << 20
            assert not (tmp_path / "state").exists()
        verdict = wait_for_hops(lab, "kept", 2)
        assert verdict.ok, verdict.faults
    finally:
        lab.isthmus("guest", "stop", "kept")


def test_without_translation_it_dies_there(lab: Lab) -> None:
    """The operator takes the risk: the watch finds the death, or it comes just after the watch."""
    lab.isthmus("guest", "start", "mortal", "--host", OLD_AMD, "--memory", "128")
    try:
        risk = ("--no-translate", *UNLEVELLED_RISK, "--accept-risk", "sse4a")
        status, said = lab.attempt("migrate", "mortal", "--to", INTEL, *risk)
        if status == 4:
            assert "opcode" in said
            return
        assert status == 0, said
        wait_for_words(lab, "mortal", "invalid opcode")
    finally:
        lab.isthmus("guest", "stop", "mortal")
