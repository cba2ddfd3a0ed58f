"""What the campaign of random faults is made of: hosts that record, faults, and what is looked at.

Each QEMU is started through a wrapper that gives it one monitor more.  It writes QEMU's events,
with QEMU's own time stamps, into a file: so whether two copies of a guest ever ran at one instant
is computed afterwards, exactly, and looking disturbs nobody.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from isthmus.errors import InputError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.process import ProcessIdentity
from isthmus.migration.phases import Phase
from isthmus.migration.record import Plan, Step, records
from isthmus.values import from_json

_SYS_PIDFD_GETFD = 438  # x86-64, include/uapi/asm-generic/unistd.h

WRAPPER = """#!/bin/sh
# QEMU with one monitor more, whose events go into a file.
for word in "$@"; do
    case $word in socket,id=qmp,path=*) folder=${word#*path=}; folder=${folder%%/qmp.sock,*} ;; esac
done
[ -n "$folder" ] && case " $* " in *' -kernel '*) ;; *) folder= ;; esac
[ -z "$folder" ] && exec %(qemu)s "$@"
name=%(events)s/$(echo "$folder" | tr / +)
mkfifo "$name.in"
exec 9<>"$name.in"
echo '{"execute": "qmp_capabilities"}' >&9
exec %(qemu)s "$@" -chardev stdio,id=events,signal=off -mon chardev=events,mode=control \\
    <&9 >>"$name"
"""


def wrapped_qemu(folder: Path) -> Path:
    """The program that plays QEMU below ``folder``."""
    (folder / "events").mkdir()
    wrapper = folder / "qemu"
    wrapper.write_text(WRAPPER % {"qemu": find_qemu().path, "events": folder / "events"})
    wrapper.chmod(0o700)
    return wrapper


class Lives:
    """When each process of the guests was seen alive, watched from a thread."""

    def __init__(self, store: GuestStore, runs: list[Path]) -> None:
        self.store = store
        self.runs = runs
        self.seen: dict[Path, ProcessIdentity] = {}
        self.last: dict[Path, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def folders(self, name: str) -> list[Path]:
        """The folders of the guest's processes, dead ones as well."""
        return [
            folder
            for run in self.runs
            if (run / name).is_dir()
            for folder in sorted((run / name).iterdir())
        ]

    def qemu(self, folder: Path) -> ProcessIdentity | None:
        """The living QEMU whose files lie in ``folder``."""
        known = self.seen.get(folder)
        if known is not None:
            return known if known.alive() else None
        for one in process.mentioning(folder / "qmp.sock"):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{one.pid}/exe").resolve().name.startswith("qemu-system"):
                    self.seen[folder] = one
                    return one
        return None

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            for folder, one in list(self.seen.items()):
                now = time.time()
                if folder not in self.last or self.last[folder] > 0:
                    self.last[folder] = now if one.alive() else -self.last.get(folder, now)


def intervals(lives: Lives, events: Path, folder: Path) -> list[tuple[float, float]]:
    """When the copy in ``folder`` ran, in Unix seconds by QEMU's clock."""
    path = events / str(folder).replace("/", "+")
    born = folder.name.partition(".")[0] == "0"
    found: list[tuple[float, float]] = []
    since: float | None = 0.0 if born else None
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        lines = []
    for line in lines:
        try:
            event = json.loads(line)
            stamp = event["timestamp"]
            at = stamp["seconds"] + stamp["microseconds"] / 1e6
        except (ValueError, KeyError, TypeError):
            continue
        if event["event"] == "RESUME" and since is None:
            since = at
        elif event["event"] == "STOP" and since is not None:
            found.append((since, at))
            since = None
    if since is not None:
        found.append((since, abs(lives.last.get(folder, time.time()))))
    return found


def overlap_s(lives: Lives, events: Path, name: str) -> float:
    """The longest time in which two copies of the guest ran at once, in seconds."""
    copies = [intervals(lives, events, folder) for folder in lives.folders(name)]
    marks = sorted(
        (begin, end, number) for number, copy in enumerate(copies) for begin, end in copy
    )
    worst, ends = 0.0, {}
    for begin, end, number in marks:
        for other, until in ends.items():
            if other != number:
                worst = max(worst, min(end, until) - begin)
        ends[number] = max(end, ends.get(number, 0.0))
    return worst


class Mover:
    """A command under way, what it says, and the journal that it writes."""

    def __init__(self, journals: Path, words: list[str], environment: dict[str, str]) -> None:
        self.journals = journals
        self._before = set(journals.glob("*.journal"))
        self._journal: Path | None = None
        self._folder: Path | None = None
        self.said = Path(environment["SAID"]).open("w+b")  # noqa: SIM115 (as long as it lives)
        self.program = subprocess.Popen(
            [sys.executable, "-c", "from isthmus.cli.main import main; main()", *words],
            stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, env=environment,
        )  # fmt: skip

    @property
    def journal(self) -> Path | None:
        if self._journal is None:
            self._journal = next(iter(set(self.journals.glob("*.journal")) - self._before), None)
        return self._journal

    def phase(self) -> Phase | None:
        """The last phase of the journal."""
        if self.journal is None:
            return None
        try:
            with self.journal.open("rb") as file:
                lines = file.read(1 << 16).split(b"\n")[:-1]
        except OSError:
            return None
        for line in reversed(lines):
            if line.startswith(b'{"at":'):
                with contextlib.suppress(msgspec.MsgspecError):
                    return msgspec.json.decode(line, type=Step).phase
        return None

    def destination(self) -> Path | None:
        """The folder of the process that receives the guest."""
        if self._folder is None and self.journal is not None:
            with contextlib.suppress(OSError, InputError):
                line = self.journal.read_bytes().split(b"\n", 1)[0]
                self._folder = from_json(line, Plan, where="").destination.directory
        return self._folder

    def ended(self, patience_s: float) -> int | None:
        """Its exit status, None if it hangs."""
        try:
            return self.program.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None

    def text(self) -> str:
        self.said.flush()
        self.said.seek(0)
        return self.said.read().decode(errors="replace")


def translator_of(folder: Path) -> ProcessIdentity | None:
    """The translator whose files lie in ``folder``."""
    for one in process.mentioning(folder):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{one.pid}/cmdline").read_bytes()
            words = command.split(b"\0")
            if b"isthmus.translate.service" in words and os.fsencode(folder) in words:
                return one
    return None


def send_signal(one: ProcessIdentity, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        if one.alive():
            os.kill(one.pid, number)


def stopped_for(one: ProcessIdentity, seconds: float) -> threading.Timer:
    """Stop a process, and let it go on in ``seconds``."""
    send_signal(one, signal.SIGSTOP)
    timer = threading.Timer(seconds, send_signal, (one, signal.SIGCONT))
    timer.start()
    return timer


def no_more_writing(one: ProcessIdentity, hard: int = resource.RLIM_INFINITY) -> None:
    """From now on each write of that process to a file fails (EFBIG), as on a broken disk."""
    with contextlib.suppress(OSError):
        resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (0, hard))


def _socket_inodes(ending: str) -> set[int]:
    """The connections (not the listeners) of UNIX sockets whose path ends so."""
    found = set()
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        columns = line.split()
        if len(columns) == 8 and columns[7].endswith(ending) and columns[3] != "00010000":
            found.add(int(columns[6]))
    return found


def cut(one: ProcessIdentity, ending: str) -> bool:
    """Break the connections of a process's UNIX sockets of that name; whether there were any."""
    inodes = _socket_inodes(ending)
    libc = ctypes.CDLL(None, use_errno=True)
    done = False
    try:
        handle = os.pidfd_open(one.pid)
    except OSError:
        return False
    try:
        for entry in Path(f"/proc/{one.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                place = str(entry.readlink())
                if place.startswith("socket:[") and int(place[8:-1]) in inodes:
                    copy = libc.syscall(_SYS_PIDFD_GETFD, handle, int(entry.name), 0)
                    if copy >= 0:
                        with socket.socket(fileno=copy) as connection:
                            connection.shutdown(socket.SHUT_RDWR)
                        done = True
    except OSError:
        pass
    finally:
        os.close(handle)
    return done


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path | None]:
    """A file system of its own at ``folder``; None where it cannot be had (mounting needs root)."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=700", "none", folder],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Take all the space that is left there."""
    with contextlib.suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
        for block in (bytes(1 << 20), bytes(4096), b"\0"):
            with contextlib.suppress(OSError):
                while True:
                    file.write(block)


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.001) -> bool:
    """Whether it came true in that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return False


def pending(store: GuestStore) -> list[tuple[Phase, str]]:
    """The migrations that have not come to their end: phase, and why."""
    return [(one.phase, one.error) for _, one in records(store.journals) if not one.final]


def ticks(guest: Guest) -> int:
    try:
        return guest.process.payload.read_bytes().count(b" tick ")
    except OSError:
        return 0
