"""Two Xen hosts of both makers, stood in for, with one guest on the first; and movers that die.

For tests/unit/test_xen_move.py and test_xen_recovery.py.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_xen_hosts import INFO, policies
from xen_stand_in import FakeHost

from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration import xen, xen_recovery
from isthmus.migration.options import Observer, Options
from isthmus.migration.platforms import Request
from isthmus.migration.record import MigrationRecord, records

ALIVE = {"web": "-b----"}
WAIT_S = 120


class Hosts:
    """Two hosts of both makers with one guest on the first, and where moves are kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.intel = FakeHost(
            folder / "intel", "xen+ssh://intel", INFO, policies("GenuineIntel", 5, 0x80000001)
        )
        self.amd = FakeHost(
            folder / "amd", "xen+ssh://amd", INFO, policies("AuthenticAMD", 5, 0x80000001)
        )
        self.store = GuestStore(folder / "state", folder / "run")
        self.intel.start()
        ways = {host.address: host.runner for host in (self.intel, self.amd)}
        monkeypatch.setattr(xen, "runner_of", ways.__getitem__)
        monkeypatch.setattr(xen_recovery, "VERIFY_S", 0.2)

    def request(self, *, verify_s: float = 0.2, **more: object) -> Request:
        return Request(
            guest="web",
            source=self.intel.address,
            destination=self.amd.address,
            options=Options(verify_s=verify_s),
            force=True,
            **more,  # type: ignore[arg-type]
        )

    def move(self, observer: Observer = lambda _: None) -> MigrationRecord:
        return asyncio.run(xen.move(self.request(), self.store, observer))

    def recover(self, use: str = "") -> MigrationRecord:
        ((path, _),) = records(self.store.journals)
        return asyncio.run(xen.recover(path, self.store, lambda _: None, use))

    @property
    def record(self) -> MigrationRecord:
        ((_, record),) = records(self.store.journals)
        return record


KILLED = """
import asyncio, os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import pytest
from xen_moves import Hosts, xen
from isthmus.migration.options import Progress
hosts = Hosts.__new__(Hosts)
from xen_stand_in import FakeHost
hosts.intel, hosts.amd = FakeHost.__new__(FakeHost), FakeHost.__new__(FakeHost)
for host, name in ((hosts.intel, "intel"), (hosts.amd, "amd")):
    host.folder, host.address = Path({folder!r}) / name, "xen+ssh://" + name
xen.runner_of = {{h.address: h.runner for h in (hosts.intel, hosts.amd)}}.__getitem__
from isthmus.hypervisor.qemu.guests import GuestStore
hosts.store = GuestStore(Path({folder!r}) / "state", Path({folder!r}) / "run")
def observe(progress):
    if progress.phase == {phase!r}:
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(xen.move(hosts.request(), hosts.store, observe))
"""


def killed_in(phase: str, tmp_path: Path) -> None:
    """Let another process move the guest, and be killed once it has written ``phase``."""
    paths = [str(Path(__file__).parent)]
    script = KILLED.format(paths=paths, folder=str(tmp_path), phase=phase)
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=WAIT_S, check=False, capture_output=True,
        env=os.environ | {"PYTHONPATH": ":".join(paths)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


def settled(hosts: Hosts) -> None:
    """Wait until no xl of these hosts runs any more."""
    until(
        lambda: not _mentioning(str(hosts.intel.folder)) and not _mentioning(str(hosts.amd.folder))
    )


def _mentioning(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
