"""Lab hosts with real KVM, driven by the command line, with folders of their own."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from isthmus.hypervisor.qemu import process
from isthmus.places import cache_folder
from isthmus.qualification.payload.verdict import Verdict, judge

PATIENCE_S = 600
"""How long a command may take, or what a guest is waited for: most are done in seconds, and take
many times that where other work shares this machine."""


class Lab:
    """The command line with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"

    def isthmus(self, *arguments: str, status: int = 0, patience_s: float = PATIENCE_S) -> str:
        """What a command prints, or its complaint where it is to fail with ``status``."""
        code, said = self.attempt(*arguments, patience_s=patience_s)
        assert code == status, said
        return said

    def attempt(self, *arguments: str, patience_s: float = PATIENCE_S) -> tuple[int, str]:
        """The exit status of a command, and what it prints or complains of."""
        try:
            done = self._run(arguments, patience_s)
        except subprocess.TimeoutExpired as error:
            said = b"".join(filter(None, (error.stdout, error.stderr))).decode(errors="replace")
            raise AssertionError(f"{arguments} takes longer than {patience_s} s: {said}") from error
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout if done.returncode == 0 else done.stderr

    def _run(
        self, arguments: tuple[str, ...], patience_s: float
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from isthmus.cli.main import main; main()", *arguments],
            env=os.environ
            | {
                "ISTHMUS_RUN": str(self.run),
                "ISTHMUS_STATE": str(self.folder / "state"),
                "ISTHMUS_CACHE": str(cache_folder()),
            },
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )

    def moved(self, guest: str, to: str, *more: str) -> dict[str, Any]:
        """The record of a move that was committed; the guest is watched until it has reported."""
        said = self.isthmus("migrate", guest, "--to", to, "--verify", "240", "--json", *more)
        record: dict[str, Any] = json.loads(said)
        assert record["steps"][-1]["phase"] == "committed"
        return record

    def verdict(self, guest: str) -> Verdict:
        """The payload's judgement of its life so far."""
        (state,) = [
            each for each in json.loads(self.isthmus("guest", "list", "--json"))
            if each["name"] == guest
        ]  # fmt: skip
        return judge([Path(stream).read_bytes() for stream in state["streams"]])


def wait_for_more(lab: Lab, guest: str, done: Mapping[str, int], names: Collection[str]) -> None:
    """Wait until the guest has executed more of these instructions than it had ``done``."""

    def more() -> bool:
        now = lab.verdict(guest).instructions
        return all(now[name] > done[name] for name in names)

    _until(more, f"{guest} goes on with {', '.join(names)}")


def wait_for_hops(lab: Lab, guest: str, count: int) -> Verdict:
    """Wait until the guest's reports tell of so many moves: it has ticked since the last one."""
    _until(lambda: len(lab.verdict(guest).hops) >= count, f"{guest} ticks after its last move")
    verdict = lab.verdict(guest)
    assert len(verdict.hops) == count
    return verdict


def wait_for_words(lab: Lab, guest: str, words: str) -> None:
    """Wait until the guest's console shows these words."""
    _until(lambda: words in lab.isthmus("guest", "console", guest), f"{guest} says {words!r}")


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not seen within {PATIENCE_S} s: {what}"
        time.sleep(1)


def hosts_seen(run: Path) -> str:
    """What the lab hosts below ``run`` do: of their emulators' processes, and their last words."""
    lines = []
    for path in sorted(run.glob(".kvm/*/host.json")):
        pid = json.loads(path.read_bytes())["process"]["identity"]["pid"]
        lines.append(f"-- {path.parent.name}, emulator {pid}: {_process(pid)}")
        for name in ("qemu.log", "console.log"):
            with contextlib.suppress(OSError):
                text = (path.parent / name).read_text(encoding="utf-8", errors="replace")
                lines += [f"{name}: {line}" for line in text.splitlines()[-15:]]
    return "\n".join(lines)


def _process(pid: int) -> str:
    """State and seconds of CPU time (proc(5), ``stat``: fields 3, 14 and 15)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return "gone"
    seconds = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    return f"state {stat[0]}, {seconds:.0f} s of CPU time; load here {os.getloadavg()}"


@contextlib.contextmanager
def lab_of(*hosts: str) -> Iterator[Lab]:
    """A lab with these hosts up; afterwards nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="is-") as name:
        lab = Lab(Path(name))
        try:
            lab.isthmus(
                "lab", "kvm", "up", *(host.removeprefix("kvm:") for host in hosts), patience_s=900
            )
            yield lab
        finally:
            lab.isthmus("lab", "kvm", "down")
            left = process.mentioning(Path(name))
            for each in left:
                each.kill()
            assert not left, "down leaves no process behind"
