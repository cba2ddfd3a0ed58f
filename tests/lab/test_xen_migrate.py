"""Real `xl migrate` between real Xen hosts of both makers, driven by the command line.

The fast subset is one crossing of a guest that was born on Intel; the round trips and the refusals
that are shown real are slow.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu import process
from isthmus.places import cache_folder
from isthmus.qualification.payload.verdict import Verdict, judge
from isthmus.qualification.xen.guest import reports
from isthmus.qualification.xen.host import image

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3600)]

AMD, INTEL = "opteron3", "nehalem"
WAIT_S = 300
"""How long something may take on a busy machine before it is taken for wrong."""


class Lab:
    """The command line with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def isthmus(self, *arguments: str, status: int = 0) -> str:
        """What a command prints, or its complaint where it is to fail with ``status``."""
        done = subprocess.run(
            [sys.executable, "-c", "from isthmus.cli.main import main; main()", *arguments],
            env=os.environ
            | {
                "ISTHMUS_RUN": str(self.folder / "run"),
                "ISTHMUS_STATE": str(self.folder / "state"),
                "ISTHMUS_CACHE": str(cache_folder()),
            },
            capture_output=True, text=True, timeout=1200, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    def xl(self, host: str, command: str) -> str:
        """What a line says in the shell of a host's dom0."""
        return self.isthmus("lab", "xen", "shell", host, command)

    def domains(self, host: str) -> set[str]:
        """The names of the guests on a host."""
        return {row.split()[0] for row in self.xl(host, "xl list").splitlines()[2:]}

    def migrate(self, guest: str, source: str, to: str, *more: str, status: int = 0) -> str:
        """Move a guest between two hosts of the lab."""
        return self.isthmus(
            "migrate", guest, "--from", f"xen+lab://{source}", "--to", f"xen+lab://{to}", *more,
            status=status,
        )  # fmt: skip

    def console(self, guest: str, host: str) -> bytes:
        """All that the guest's console has said on a host."""
        return self.isthmus("lab", "xen", "console", guest, "--host", host).encode()

    def grows(self, guest: str, host: str, than: int) -> bytes:
        """Wait until the console on a host has said more than so many bytes of reports."""
        deadline = time.monotonic() + WAIT_S
        while True:
            said = self.console(guest, host)
            if len(reports(said)) > than:
                return said
            assert time.monotonic() < deadline, said[-2000:]
            time.sleep(0.5)


@contextlib.contextmanager
def lab_of(*hosts: str) -> Iterator[Lab]:
    """A lab with these hosts up; afterwards nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="is-") as name:
        lab = Lab(Path(name))
        try:
            lab.isthmus("lab", "xen", "up", *hosts)
            yield lab
        finally:
            lab.isthmus("lab", "xen", "down")
            left = process.mentioning(Path(name))
            for each in left:
                each.kill()
            assert not left, "down leaves no process behind"


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


class Life:
    """The reports of a guest's whole life, host by host."""

    def __init__(self, lab: Lab, guest: str, home: str) -> None:
        self._lab = lab
        self._guest = guest
        self._where = home
        self._begin = {home: 0}
        self._streams: list[bytes] = []

    def cross(self, to: str, *more: str) -> dict[str, object]:
        """Move it; its record.  The reports of each stay are what its host's console got then."""
        before = len(self._lab.console(self._guest, to))
        record = json.loads(self._lab.migrate(self._guest, self._where, to, "--json", *more))
        assert record["steps"][-1]["phase"] == "committed"
        assert self._guest in self._lab.domains(to)
        assert not self._lab.domains(self._where), "one copy is left, and no remains"
        self._leave()
        self._where, self._begin[to] = to, before
        return dict(record)

    def verdict(self) -> Verdict:
        """The judgement of all of it, once some more has come."""
        self._lab.grows(self._guest, self._where, self._begin[self._where])
        return judge([reports(stream) for stream in (*self._streams, self._stay())])

    def _stay(self) -> bytes:
        return self._lab.console(self._guest, self._where)[self._begin[self._where] :]

    def _leave(self) -> None:
        self._streams.append(self._stay())


def faults(verdict: Verdict) -> list[str]:
    """What went wrong, but for what a PV guest's programs see: the host's own CPUID."""
    return [f"{fault.kind}: {fault.detail}" for fault in verdict.faults if fault.kind != "cpuid"]


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


@pytest.mark.slow
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
        assert not faults(verdict)
        assert len(verdict.hops) == 10
    finally:
        for host in (home, away):
            lab.xl(host, f"xl destroy {name}; true")


LEAVES_ONLY = "['0x0:eax={level:032b}', '0x80000000:eax={xlevel:032b}']"
"""The highest leaves of both, and nothing else: what satisfies Xen, and not the guest."""


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_modern_pair_moves_a_guest_with_avx_state_there_and_back() -> None:
    with lab_of("epyc", "skylake") as lab:
        lab.isthmus("lab", "xen", "start", "modern", "--host", "skylake", "--level-with", "epyc")
        life = Life(lab, "modern", "skylake")
        for to in ("epyc", "skylake"):
            life.cross(to)
        verdict = life.verdict()
        assert not faults(verdict)
        assert "avx2" in verdict.tests
        (last,) = sorted((lab.folder / "state").rglob("stream.jsonl"))[-1:]
        assert "X86_PV_VCPU_XSAVE" in last.read_text()
