"""Look at a guest for a while after its move: what is seen goes to :mod:`migration.watching`.

Thin: a pair of :class:`Eyes` looks, the pure decision says what it means, the end is written down
(:mod:`isthmus.migration.death_notice`).  Nothing is changed in the guest or its hypervisor.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from isthmus.errors import InputError, IsthmusError
from isthmus.guest.console import MAX_BYTES, Death, Kind, farewell, find_death, readable
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor, MonitorGoneError
from isthmus.hypervisor.qemu.vcpus import positions
from isthmus.migration.arming import look
from isthmus.migration.death_notice import MAX_LINES, WatchRecord
from isthmus.migration.watching import (
    Event,
    Memory,
    Outlook,
    Sample,
    Sign,
    Verdict,
    step,
)
from isthmus.translate.outside import TranslatorStatus
from isthmus.values import read_value, to_json

SAMPLE_S = 2.0
"""Between two looks; each stops a vCPU for less than a millisecond."""


class Eyes(Protocol):
    """Who looks at a guest."""

    async def look(self) -> tuple[Sample, tuple[Event, ...]]:
        """How the guest is now, and what happened since the last look; never raises for its end."""
        ...

    def console(self) -> bytes:
        """What it printed since it came here, as far as that can be known."""
        ...


Tell = Callable[[Verdict, float], None]


async def keep_watch(
    eyes: Eyes,
    record: WatchRecord,
    *,
    seconds: float,
    tell: Tell = lambda *_: None,
    sample_s: float = SAMPLE_S,
) -> tuple[WatchRecord, Death | None]:
    """Look for ``seconds``, or until there is nothing more to see; and the death on its console.

    :param record: who is watched; the rest of it is filled in.
    :param tell: told of each look: its verdict, and for how long it has been watched (s).
    """
    begun = time.monotonic()
    memory = Memory()
    said: dict[str, None] = {}
    verdict, sample = Verdict(outlook=Outlook.LIVES), Sample(at=begun)
    while True:
        sample, events = await eyes.look()
        memory, verdict = step(memory, sample, events)
        said |= dict.fromkeys(verdict.warnings)
        elapsed = time.monotonic() - begun
        tell(verdict, elapsed)
        if verdict.final or elapsed >= seconds:
            break
        await asyncio.sleep(min(sample_s, max(0.0, seconds - elapsed)))
    text = await asyncio.to_thread(eyes.console)
    ended = record.replace(
        at=time.time(),
        watched_s=time.monotonic() - begun,
        outlook=verdict.outlook,
        reason=verdict.reason,
        warnings=tuple(said)[-MAX_LINES:],
        translated=sample.translated,
    )
    death = find_death(text)
    if ended.died:
        ended = ended.replace(
            console=death.lines if death and death.lines else readable(text, last=MAX_LINES)
        )
    return ended, death


class GuestEyes:
    """Looks at a guest of ours, by the second monitor of its process, its console, its translator.

    That monitor serves one client at a time and others need it as well, so each look has a
    connection of its own.  Nothing is missed in between: these guests never vanish, whatever ends
    them leaves its run state standing (``-action`` in :mod:`isthmus.hypervisor.qemu.process`).
    """

    def __init__(self, store: GuestStore, name: str) -> None:
        self._store = store
        self._name = name
        self._process = store.read(name).process

    async def look(self) -> tuple[Sample, tuple[Event, ...]]:
        """How the guest is now."""
        now = time.monotonic()
        try:
            guest = self._store.read(self._name)
        except InputError:
            return Sample(at=now), (Event(at=now, sign=Sign.STOPPED_BY_HOST),)
        if guest.process.identity != self._process.identity:
            return Sample(at=now), (Event(at=now, sign=Sign.MOVED),)
        sample = console_sample(Sample(at=now), self.console())
        if not self._process.alive():
            last = await asyncio.to_thread(process.last_words, self._process.messages)
            return sample.replace(process_gone=last), ()
        with contextlib.suppress(MonitorGoneError, CommandRefusedError):
            async with Monitor.session(self._process.observe) as monitor:
                sample = sample.replace(
                    state=await monitor.status(),
                    vcpus=positions(await monitor.human("info registers -a")),
                )
        return await self._translated(sample), ()

    async def _translated(self, sample: Sample) -> Sample:
        try:
            report = await look(self._store, self._name)
        except IsthmusError:
            return sample
        status = report.status
        if report.translation is None or (status is None and not report.problem):
            return sample
        if status is None:
            return sample.replace(translator_gone=True)
        return counted(sample, status, report.warning or report.problem)

    def console(self) -> bytes:
        """What it printed on its serial console in this process."""
        return read_tail(self._process.console)


_QMP_SIGNS = {
    "GUEST_PANICKED": Sign.PANICKED, "GUEST_CRASHLOADED": Sign.PANICKED, "RESET": Sign.RESTARTED,
    "SHUTDOWN": Sign.SHUT_DOWN, "STOP": Sign.PAUSED, "RESUME": Sign.RESUMED,
    "BLOCK_IO_ERROR": Sign.DISK_ERROR, "WATCHDOG": Sign.WATCHDOG,
}  # fmt: skip


class MonitorEyes:
    """Looks at a QEMU of which only the QMP socket is known; the connection is kept for events."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._monitor: Monitor | None = None
        self._open = contextlib.AsyncExitStack()
        self._listener: Any = None

    async def __aenter__(self) -> Self:
        """Connect.

        :raises MonitorGoneError: nobody answers there.
        """
        self._monitor = await self._open.enter_async_context(Monitor.session(self._path))
        self._listener = self._open.enter_context(self._monitor.events(*_QMP_SIGNS))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._open.aclose()

    async def look(self) -> tuple[Sample, tuple[Event, ...]]:
        """How the guest is now."""
        assert self._monitor is not None
        sample = Sample(at=time.monotonic())
        try:
            sample = sample.replace(
                state=await self._monitor.status(),
                vcpus=positions(await self._monitor.human("info registers -a")),
            )
        except CommandRefusedError:
            pass
        except MonitorGoneError as error:
            sample = sample.replace(process_gone=error.message)
        events = []
        while not self._listener.empty():
            events.append(qmp_event(await self._listener.get(), sample.at))
        return sample, tuple(events)

    def console(self) -> bytes:
        """Nothing: where its console is, only who started it knows."""
        return b""


def qmp_event(message: Any, at: float) -> Event:
    """QEMU's event (qapi/run-state.json) as a sign."""
    name, data = str(message.get("event")), message.get("data") or {}
    sign = _QMP_SIGNS[name]
    reason = str(data.get("reason", ""))
    if name == "SHUTDOWN":
        if reason == "guest-reset":
            sign = Sign.RESTARTED
        elif reason == "guest-panic":
            sign = Sign.PANICKED
        elif not data.get("guest", False):
            sign = Sign.STOPPED_BY_HOST
    elif name == "RESET" and not data.get("guest", False):
        sign = Sign.STOPPED_BY_HOST  # system_reset: somebody outside wanted it
    return Event(at=at, sign=sign, words=reason)


def console_sample(sample: Sample, console: bytes) -> Sample:
    """The look with what the console says."""
    death = find_death(console)
    gone = farewell(console)
    if death is None:
        return sample.replace(farewell=gone)
    if death.kind is Kind.KILLED_BY_SIGNAL:
        # That a program was killed is its own affair, unless it met an instruction that is missing.
        return sample.replace(
            farewell=gone, casualty=death.headline if "opcode" in death.trap else ""
        )
    return sample.replace(farewell=gone, death=death.headline)


def counted(sample: Sample, status: TranslatorStatus, warning: str) -> Sample:
    """The look with what the guest's translator counts."""
    return sample.replace(
        translated=sum(status.translated.values()),
        untranslated={**status.refused, **status.lacking},
        translator_warning=warning,
    )


def read_tail(path: Path) -> bytes:
    """The end of a console's file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_BYTES))
            return file.read(MAX_BYTES)
    except OSError:
        return b""


def watch_path(journals: Path, migration: str) -> Path:
    """Where the record of a migration's watch is."""
    return journals / f"{migration}.watch.json"


def write_watch(path: Path, record: WatchRecord) -> None:
    """Write the record, whole or not at all.

    :raises IsthmusError: it cannot be written.
    """
    fresh = path.with_suffix(".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_bytes(to_json(record, indent=1) + b"\n")
        fresh.replace(path)
    except OSError as error:
        raise IsthmusError(
            f"{path}: cannot be written: {error.strerror}", remedy="free some space"
        ) from error


def read_watch(path: Path) -> WatchRecord:
    """The record of a watch; raises :class:`InputError` if there is none."""
    return read_value(path, WatchRecord)


def watches(journals: Path, *, last: int = 20) -> list[WatchRecord]:
    """The records of the latest watches, oldest first; a damaged one is left out."""
    found = []
    for path in sorted(journals.glob("*.watch.json"))[-last:]:
        with contextlib.suppress(InputError):
            found.append(read_watch(path))
    return found
