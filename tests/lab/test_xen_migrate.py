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
