"""A guest goes from an AMD host to an Intel host and back, live, both with real KVM."""

import json
import time
from collections.abc import Iterator

import pytest
from kvm_lab import Lab, lab_of

from isthmus.cpu.model import CpuModel
from isthmus.places import cache_folder
from isthmus.qualification.kvm.bochs import SUITES
from isthmus.qualification.lab import packages
from isthmus.values import from_json

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

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
    newer = (packages.of_suite(suite, cache_folder() / "lists" / suite) for suite in SUITES)
    if packages.find("bochs") is None and not any(newer):
        pytest.skip("no package bochs is to be had here, which emulates the Intel host")
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
            record = json.loads(lab.isthmus("migrate", "far", "--to", host, "--json", *RISK))
            assert record["steps"][-1]["phase"] == "committed"
            assert record["figures"]["stopped_ms"] is None, "two clocks are not compared"
        time.sleep(1)
        verdict = lab.verdict("far")
        assert verdict.ok, verdict.faults
        assert len(verdict.hops) == 2
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
                text = lab.isthmus(
                    "migrate", "often", "--to", host, "--verify", "90", "--json", *risk
                )
                assert json.loads(text)["steps"][-1]["phase"] == "committed"
        time.sleep(1)
        verdict = lab.verdict("often")
        # What the unlevelled one is shown abroad is less than at home, as it is told beforehand.
        allowed = set() if start else {"cpuid"}
        assert {fault.kind for fault in verdict.faults} <= allowed, verdict.faults
        assert len(verdict.hops) == 10
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
        record = json.loads(
            lab.isthmus(
                "migrate", "born", "--to", INTEL, "--verify", "90", "--json",
                *UNLEVELLED_RISK,
            )
        )  # fmt: skip
        assert record["steps"][-1]["phase"] == "committed"
        before = lab.verdict("born").instructions["extrq"]
        # A trap there costs 40 ms, or many times that where other work shares this machine.
        deadline = time.monotonic() + 240
        while (verdict := lab.verdict("born")).instructions["extrq"] == before:
            assert time.monotonic() < deadline, "EXTRQ is not translated on Intel"
            time.sleep(1)
        assert verdict.instructions["extrq"] > before
        # That it is shown less than at home is the price; nothing else may have changed.
        assert {fault.kind for fault in verdict.faults} <= {"cpuid"}, verdict.faults
    finally:
        lab.isthmus("guest", "stop", "born")


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
        deadline = time.monotonic() + 60
        while "invalid opcode" not in lab.isthmus("guest", "console", "mortal"):
            assert time.monotonic() < deadline, "SSE4a ran on a CPU that lacks it"
            time.sleep(1)
    finally:
        lab.isthmus("guest", "stop", "mortal")
