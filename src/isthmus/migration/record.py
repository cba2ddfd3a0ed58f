"""The record of a migration that survives a crash: an append-only journal on disk.

One file for each migration, one JSON document a line: first the plan (everything needed to find
both processes again), then each phase *before* it is entered.  The file gets its space when it is
made, so that a disk that fills up during the move cannot keep us from writing the next phase; each
line is on the disk before the step it announces is taken.  A line torn by a crash is ignored: the
step it announced was not taken.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from isthmus.errors import EnvironmentLackError, InputError, IsthmusError
from isthmus.hypervisor.qemu.process import LaunchSpec, ProcessIdentity
from isthmus.hypervisor.qemu.through_file import Deposit
from isthmus.migration.phases import FINAL, TRANSITIONS, Phase
from isthmus.translate.placement import Translation
from isthmus.translate.rewrite.record import RewriteOrder
from isthmus.values import Value, from_json, read_bytes, to_json

SCHEMA_VERSION = 1
RESERVED_BYTES = 64 << 10
"""Space that a journal takes when it is made; a whole migration writes about a tenth of it."""


class Side(Value, frozen=True):
    """One of the two processes of a migration, found again from this after any crash.

    ``qmp`` is its monitor, None where a daemon at ``address`` (a URI) has the guest, which it knows
    by the UUID ``domain``.  ``identity`` is None until the process exists or where it is not on
    this machine or not ours; ``directory`` is the folder of a process that Isthmus launches;
    ``translator`` the folder of its translator's files, where one is armed.
    """

    qmp: Path | None = None
    address: str = ""
    domain: str = ""
    observe: Path | None = None
    directory: Path | None = None
    identity: ProcessIdentity | None = None
    translator: Path | None = None


class Plan(Value, frozen=True):
    """What a migration sets out to do.

    ``spec`` is how Isthmus launches the destination, None where it already waits at its monitor.
    ``channel`` is the address of the stream, as QEMU writes it: a UNIX socket in a private folder;
    ``dial`` where the source reaches it, if that is another address.
    ``rewrite``: what to rewrite in the guest before it runs there, or to put back;
    ``translation``: what is translated for it there, and by which placement, None: nothing;
    ``deposit``: the file that it goes through, None: it goes live;
    ``platform``: who moves it (:mod:`isthmus.migration.platforms`), empty for QEMU itself;
    ``task``: what that platform calls the move while it goes on without us;
    ``peer``: the destination as the source's daemon reaches it, empty where it does not;
    ``tls``: the stream is encrypted.
    """

    id: str
    guest: str
    source: Side
    destination: Side
    channel: str
    spec: LaunchSpec | None = None
    source_host: str = ""
    destination_host: str = ""
    created: float = 0.0
    rewrite: RewriteOrder | None = None
    translation: Translation | None = None
    dial: str = ""
    deposit: Deposit | None = None
    platform: str = ""
    task: str = ""
    peer: str = ""
    tls: bool = False
    schema: int = SCHEMA_VERSION


class Step(Value, frozen=True):
    """One entry of the journal: the phase entered, when (Unix seconds), and why."""

    phase: Phase
    at: float
    why: str = ""


class Figures(Value, frozen=True):
    """What a move cost.

    ``total_ms`` from QEMU's start of the precopy to its end; ``downtime_ms`` as QEMU measures it at
    the source, None where nobody does (Xen); ``stopped_ms`` between QEMU's own time stamps of the
    source's STOP and the destination's RESUME, so including what we add; ``moved_bytes`` on the
    wire.  Through a file the first two are the time from the source's stop to the destination's
    start.  ``postcopy``: it ran at the destination before all its memory was there.
    """

    total_ms: float = 0.0
    downtime_ms: float | None = None
    stopped_ms: float | None = None
    moved_bytes: int = 0
    postcopy: bool = False


class MigrationRecord(Value, frozen=True):
    """The journal read as one value."""

    plan: Plan
    steps: tuple[Step, ...]
    figures: Figures | None = None

    @property
    def phase(self) -> Phase:
        """The last phase entered."""
        return self.steps[-1].phase

    @property
    def reached(self) -> Phase:
        """The last phase on the way, before anything was put right."""
        return next(
            step.phase
            for step in reversed(self.steps)
            if step.phase not in {Phase.UNDECIDED, Phase.ROLLING_BACK}
        )

    @property
    def rolling_back(self) -> bool:
        """Whether rolling back was begun and nothing went on since."""
        for step in reversed(self.steps):
            if step.phase not in {Phase.UNDECIDED, Phase.ROLLING_BACK}:
                return False
            if step.phase is Phase.ROLLING_BACK:
                return True
        return False

    @property
    def error(self) -> str:
        """Why the migration did not go on, empty if it did."""
        return next((step.why for step in reversed(self.steps) if step.why), "")

    @property
    def final(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase in FINAL


class JournalFailedError(IsthmusError):
    """The journal cannot be written: the next step must not be taken."""


class Journal:
    """The open journal of one running migration; only the process that moves the guest has it."""

    def __init__(self, path: Path, plan: Plan, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._end = 0
        self._record = MigrationRecord(
            plan=plan, steps=(Step(phase=Phase.OBSERVED, at=plan.created),)
        )

    @classmethod
    def create(cls, folder: Path, plan: Plan) -> "Journal":
        """Make the journal of a new migration with its space reserved.

        :raises EnvironmentLackError: the folder cannot be written or the disk is full.
        """
        path = folder / f"{plan.id}.journal"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentLackError(
                f"{path}: the record of the migration cannot be made: {error.strerror}",
                remedy="set ISTHMUS_STATE to a folder that can be written",
            ) from error
        journal = cls(path, plan, descriptor)
        try:
            os.posix_fallocate(descriptor, 0, RESERVED_BYTES)
            journal._append(to_json(plan))
            journal._append(to_json(journal._record.steps[0]))
            _sync_folder(folder)
        except (OSError, JournalFailedError) as error:
            journal.close()
            path.unlink(missing_ok=True)
            raise EnvironmentLackError(
                f"{path}: no space for the record of the migration; nothing was moved",
                remedy="free some space, or set ISTHMUS_STATE to another disk",
            ) from error
        return journal

    @classmethod
    def reopen(cls, path: Path) -> "Journal":
        """Open the journal of a migration that was cut short, to go on writing it."""
        record, end = _read(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise EnvironmentLackError(f"{path}: {error.strerror}") from error
        journal = cls(path, record.plan, descriptor)
        journal._record = record
        journal._end = end
        return journal

    @property
    def record(self) -> MigrationRecord:
        """What has been written so far."""
        return self._record

    @property
    def phase(self) -> Phase:
        """The phase the migration is in."""
        return self._record.phase

    def enter(self, phase: Phase, why: str = "") -> None:
        """Write that ``phase`` is entered, durably; only then take its step.

        :raises JournalFailedError: it could not be written, so the step must not be taken.
        """
        if phase not in TRANSITIONS[self.phase]:
            raise AssertionError(f"no way from {self.phase} to {phase}")
        step = Step(phase=phase, at=time.time(), why=why)
        self._append(to_json(step))
        self._record = msgspec.structs.replace(self._record, steps=(*self._record.steps, step))

    def open_way(self, phase: Phase, why: str = "") -> None:
        """Make the phase one that may be entered, by way of ``undecided`` where there is no other.

        So where rolling back had begun, and the copy that was to go on has died since.
        """
        if phase not in TRANSITIONS[self.phase]:
            self.enter(Phase.UNDECIDED, why)

    def note(self, phase: Phase, why: str = "") -> None:
        """Enter a phase of putting things right: there, doing it matters more than writing it.

        A record that could not be written stays behind; recovery will find the truth again.
        """
        if phase in TRANSITIONS[self.phase]:
            with contextlib.suppress(JournalFailedError):
                self.enter(phase, why)

    def amend(self, plan: Plan) -> None:
        """Write what has become known of the plan (a process's identity)."""
        self._append(to_json(plan))
        self._record = msgspec.structs.replace(self._record, plan=plan)

    def measure(self, figures: Figures) -> None:
        """Write what the move cost."""
        self._append(to_json(figures))
        self._record = msgspec.structs.replace(self._record, figures=figures)

    def close(self) -> None:
        """Give back the reserved space that was not used, and close."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, line: bytes) -> None:
        data = line + b"\n"
        try:
            written = os.pwrite(self._descriptor, data, self._end)
            if written != len(data):
                raise JournalFailedError(f"{self.path}: the record could not be written whole")
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise JournalFailedError(
                f"{self.path}: the record could not be written: {error.strerror}"
            ) from error
        self._end += len(data)


def new_id() -> str:
    """A short name for a migration that sorts by time."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime()) + "-" + secrets.token_hex(2)


def read_record(path: Path) -> MigrationRecord:
    """Read a journal; a torn last line is ignored.

    :raises InputError: not a journal of ours.
    """
    return _read(path)[0]


def require_none_pending(folder: Path, name: str, concerns: Callable[[Plan], bool]) -> None:
    """Refuse to begin anything with a guest while an earlier migration of it has not ended.

    :param concerns: whether a migration's plan is about that guest.
    :raises IsthmusError: one has not.
    """
    for path, record in records(folder):
        if not record.final and concerns(record.plan):
            raise IsthmusError(
                f"{name}: migration {path.stem} was cut short",
                remedy="isthmus migrate --resume finishes it or rolls it back",
            )


def records(folder: Path) -> list[tuple[Path, MigrationRecord]]:
    """All readable journals of a folder, oldest first."""
    found = []
    for path in sorted(folder.glob("*.journal")) if folder.is_dir() else ():
        with contextlib.suppress(InputError):
            found.append((path, read_record(path)))
    return found


def unreadable(folder: Path) -> dict[str, str]:
    """The journals of a folder that cannot be read, by migration, and why.

    Without those that only have their space: their migration ended before its first step.
    """
    problems = {}
    for path in sorted(folder.glob("*.journal")) if folder.is_dir() else ():
        try:
            read_record(path)
        except InputError as error:
            with contextlib.suppress(InputError):
                if not read_bytes(path, limit=4 << 20).strip(b"\0"):
                    continue
            problems[path.stem] = str(error)
    return problems


def _read(path: Path) -> tuple[MigrationRecord, int]:
    """The record, and where its last whole line ends."""
    data = read_bytes(path, limit=4 << 20)
    plan: Plan | None = None
    steps: list[Step] = []
    figures: Figures | None = None
    end = 0
    for line in data.split(b"\n")[:-1]:
        if line.startswith(b"\0"):
            break
        try:
            fields = msgspec.json.decode(line)
        except msgspec.DecodeError:
            break
        if not isinstance(fields, dict):
            break
        if "phase" in fields:
            steps.append(from_json(line, Step, where=str(path)))
        elif "guest" in fields:
            plan = from_json(line, Plan, where=str(path))
        else:
            figures = from_json(line, Figures, where=str(path))
        end += len(line) + 1
    if plan is None or not steps:
        raise InputError(f"{path}: not the record of a migration", remedy="name another")
    if plan.schema > SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema {plan.schema} is newer than this Isthmus reads", remedy="upgrade it"
        )
    return MigrationRecord(plan=plan, steps=tuple(steps), figures=figures), end


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def guest_lock(folder: Path, guest: str) -> Iterator[None]:
    """Hold the right to move ``guest``; the kernel gives it back when this process dies.

    :raises IsthmusError: another process of this machine is moving it.
    """
    name = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in guest)[-100:]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EnvironmentLackError(
            f"{folder}: cannot be written: {error.strerror}",
            remedy="set ISTHMUS_STATE to a folder that can be written",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise IsthmusError(
                f"guest {guest} is being moved by another process",
                remedy="`isthmus status` shows it; wait until it has ended",
            ) from None
        yield
    finally:
        os.close(descriptor)
