"""Lab hosts with real Xen, driven by the command line, with folders of their own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from isthmus.hypervisor.qemu import process
from isthmus.places import cache_folder
from isthmus.qualification.payload.verdict import Verdict, judge
from isthmus.qualification.xen.guest import reports

WAIT_S = 300
"""How long something may take on a busy machine before it is taken for wrong."""


COMMAND = (sys.executable, "-c", "from isthmus.cli.main import main; main()")
"""The command line, as words to run."""


class Lab:
    """The command line with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = os.environ["PATH"]
        """Where the command line looks for ssh."""

    @property
    def environment(self) -> dict[str, str]:
        """The environment that has the command line keep to those folders."""
        return os.environ | {
            "PATH": self.path,
            "ISTHMUS_RUN": str(self.folder / "run"),
            "ISTHMUS_STATE": str(self.folder / "state"),
            "ISTHMUS_CACHE": str(cache_folder()),
        }

    def isthmus(self, *arguments: str, status: int = 0) -> str:
        """What a command prints, or its complaint where it is to fail with ``status``."""
        done = subprocess.run(
            [*COMMAND, *arguments], env=self.environment,
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
