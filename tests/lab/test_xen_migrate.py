"""Real `xl migrate` between real Xen hosts of both makers, driven by the command line.

All of it is slow: the first run builds the hypervisor.  What needs no live move is in
test_xen_real_stream.py, what fails and is killed in tests/unit/test_xen_move.py.
"""

import json
import re
from collections.abc import Callable, Iterator

import pytest
from xen_lab import Lab, Life, faults, lab_of

from isthmus.errors import EnvironmentLackError
from isthmus.places import cache_folder
from isthmus.qualification.xen.guest import reports
from isthmus.qualification.xen.host import image

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(7200)]

AMD, INTEL = "opteron3", "nehalem"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        _, live = image(cache=cache_folder())
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    if not live:
        pytest.skip("no source of Xen here: Debian's own hypervisor cannot move PV guests live")
    with lab_of(AMD, INTEL) as up:
        yield up


def test_a_guest_born_on_intel_goes_to_amd_live_its_stream_filtered(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    lab.isthmus("lab", "xen", "start", "fast", "--host", INTEL, "--level-with", AMD)
    try:
        life = Life(lab, "fast", INTEL)
        record = life.cross(AMD)
        record_property("record", json.dumps(record))
        verdict = life.verdict()
        assert not faults(verdict)
        assert verdict.ticks > 10
        (journal,) = (lab.folder / "state").rglob("*.xen/stream.jsonl")
        changes = [json.loads(line) for line in journal.read_text().splitlines()]
        assert changes[0]["rule"] == "pv-vmce-caps"
    finally:
        lab.xl(AMD, "xl destroy fast; true")


def test_an_unlevelled_guest_is_refused_with_xens_own_reason(lab: Lab) -> None:
    lab.isthmus("lab", "xen", "start", "plain", "--host", AMD)
    try:
        said = lab.migrate("plain", AMD, INTEL, "--dry-run", status=3)
        assert "Failed to set CPUID policy: leaf 80000000" in said
        said = lab.migrate("plain", AMD, INTEL, status=3)
        assert lab.domains(AMD) == {"plain"}
        # Xen itself says so, and xl lets the guest go on.
        said = lab.migrate("plain", AMD, INTEL, "--force", status=4)
        assert re.search(r"Failed to set CPUID policy: leaf 80000000", said), said
        assert "isthmus level" in said, "the message is explained"
        assert lab.domains(AMD) == {"plain"}
        assert not lab.domains(INTEL)
        size = len(reports(lab.console("plain", AMD)))
        lab.grows("plain", AMD, size)
    finally:
        lab.xl(AMD, "xl destroy plain; true")


@pytest.mark.parametrize(("home", "away"), [(AMD, INTEL), (INTEL, AMD)])
def test_a_levelled_guest_crosses_and_returns_five_times(
    lab: Lab, home: str, away: str, record_property: Callable[[str, object], None]
) -> None:
    name = f"trip{home}"
    lab.isthmus("lab", "xen", "start", name, "--host", home, "--level-with", away)
    try:
        life = Life(lab, name, home)
        seconds = []
        for hop in range(10):
            figures = life.cross(away if hop % 2 == 0 else home)["figures"]
            assert isinstance(figures, dict)
            seconds.append(figures["total_ms"] / 1000)
        verdict = life.verdict()
        record_property("seconds", seconds)
        record_property("gaps_ms", [hop.guest_gap_ms for hop in verdict.hops])
        record_property("real_gaps_ms", [hop.real_gap_ms for hop in verdict.hops])
        assert not faults(verdict)
        assert len(verdict.hops) == 10
    finally:
        for host in (home, away):
            lab.xl(host, f"xl destroy {name}; true")


LEAVES_ONLY = "['0x0:eax={level:032b}', '0x80000000:eax={xlevel:032b}']"
"""The highest leaves of both, and nothing else: what satisfies Xen, and not the guest."""


def test_leaves_alone_satisfy_xen_and_the_guest_dies_of_rdtscp(lab: Lab) -> None:
    """Born on AMD its kernel reads its clock by RDTSCP, which Nehalem has not."""
    lab.isthmus("lab", "xen", "start", "leaves", "--host", AMD)
    lab.xl(AMD, "xl destroy leaves")
    entries = LEAVES_ONLY.format(level=5, xlevel=0x80000008)
    lab.xl(AMD, f'echo "cpuid = {entries}" >> /guest/leaves.cfg; xl create /guest/leaves.cfg')
    try:
        lab.grows("leaves", AMD, 10_000)
        said = lab.migrate("leaves", AMD, INTEL, status=3)
        assert "rdtscp" in said
        said = lab.migrate("leaves", AMD, INTEL, "--force", "--verify", "20", status=4)
        assert "does not live on the destination" in said
        assert lab.domains(AMD) == {"leaves"}, "it was taken back"
        assert not lab.domains(INTEL)
        lab.grows("leaves", AMD, len(reports(lab.console("leaves", AMD))))
    finally:
        lab.xl(AMD, "xl destroy leaves; true")


def test_without_the_filter_amd_refuses_a_guest_born_on_intel(lab: Lab) -> None:
    lab.isthmus("lab", "xen", "start", "raw", "--host", INTEL, "--level-with", AMD)
    try:
        said = lab.migrate("raw", INTEL, AMD, "--no-translate", status=3)
        assert "unsupported MCA capabilities" in said
        said = lab.migrate("raw", INTEL, AMD, "--no-translate", "--force", status=4)
        assert "Failed to set vcpu0's extended info" in said
        assert "unsupported MCA capabilities 0x1000c02" in lab.xl(AMD, "xl dmesg | tail -n 20")
        assert lab.domains(INTEL) == {"raw"}
        lab.grows("raw", INTEL, len(reports(lab.console("raw", INTEL))))
    finally:
        lab.xl(INTEL, "xl destroy raw; true")


MODERN_ROUND_TRIPS = 3
"""Without the eager FPU, programs of dom0 on ``epyc`` died within one to four of them."""


def test_the_modern_pair_moves_a_guest_with_avx_state_there_and_back(
    record_property: Callable[[str, object], None],
) -> None:
    with lab_of("epyc", "skylake") as lab:
        assert "PV VMs: EAGER_FPU" in lab.xl("epyc", "xl dmesg | grep 'Support for PV VMs'")
        lab.isthmus("lab", "xen", "start", "modern", "--host", "skylake", "--level-with", "epyc")
        life = Life(lab, "modern", "skylake")
        for to in ("epyc", "skylake") * MODERN_ROUND_TRIPS:
            record_property(f"to {to}", json.dumps(life.cross(to)["figures"]))
        verdict = life.verdict()
        record_property("gaps_ms", [hop.guest_gap_ms for hop in verdict.hops])
        assert not faults(verdict)
        assert len(verdict.hops) == 2 * MODERN_ROUND_TRIPS
        assert "avx2" in verdict.tests
        for name in ("epyc", "skylake"):
            assert not lab.xl(name, "dmesg | grep -E 'segfault|trap invalid opcode'; true")
        (last,) = sorted((lab.folder / "state").rglob("stream.jsonl"))[-1:]
        assert "X86_PV_VCPU_XSAVE" in last.read_text()
