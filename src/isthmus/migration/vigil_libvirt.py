"""Look at a domain of libvirt after its move, through ``virsh``: see :mod:`migration.vigil`.

libvirt's events come from a ``virsh event`` that runs for as long as the watch; its words are those
of ``tools/virsh-domain-event.c``.  Registers come through QEMU's human monitor: libvirt notes once
in the domain's log that somebody used it ("tainted: custom-monitor"), nothing else changes.
"""

import asyncio
import contextlib
import os
import re
import time
from pathlib import Path
from typing import Self

from isthmus.errors import EnvironmentLackError, HypervisorError
from isthmus.guest.console import MAX_BYTES
from isthmus.hypervisor.libvirt.domain import Domain, read_domain
from isthmus.hypervisor.libvirt.virsh import Virsh
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor, MonitorGoneError
from isthmus.hypervisor.qemu.vcpus import Registers, positions
from isthmus.migration.vigil import console_sample, counted
from isthmus.migration.watching import Event, Sample, Sign
from isthmus.translate.service import TranslatorClient, TranslatorError

LOOK_S = 5.0
"""Between two looks: each is a few commands, over ssh perhaps."""
AGENT_TIMEOUT_S = 5
MAX_LINE = 4096
MAX_EVENTS = 1000

_LIFECYCLE: tuple[tuple[str, Sign], ...] = (
    ("Crashed", Sign.PANICKED),
    ("Stopped Crashed", Sign.CRASHED),
    ("Stopped Failed", Sign.CRASHED),
    ("Stopped Migrated", Sign.MOVED),
    ("Suspended Migrated", Sign.MOVED),
    ("Stopped Destroyed", Sign.STOPPED_BY_HOST),
    ("Stopped Saved", Sign.STOPPED_BY_HOST),
    ("Stopped Snapshot", Sign.STOPPED_BY_HOST),
    ("Shutdown Finished after host", Sign.STOPPED_BY_HOST),
    ("Stopped", Sign.SHUT_DOWN),
    ("Shutdown", Sign.SHUT_DOWN),
    ("Suspended I/O", Sign.DISK_ERROR),
    ("Suspended Watchdog", Sign.WATCHDOG),
    ("Suspended", Sign.PAUSED),
    ("Resumed", Sign.RESUMED),
)
"""The first that a lifecycle event begins with says what it means; ``Defined``, ``Started`` and
others mean nothing to a guest that runs."""
_KINDS = {"reboot": Sign.RESTARTED, "watchdog": Sign.WATCHDOG, "io-error": Sign.DISK_ERROR}
_EVENT = re.compile(r"event '([a-z-]{1,40})' for domain ")
_STATES = {
    "running": "running", "idle": "running", "in shutdown": "running", "paused": "paused",
    "shut off": "shutdown", "crashed": "guest-panicked", "pmsuspended": "suspended",
}  # fmt: skip
"""``virsh domstate`` in the words of QEMU's run states."""
_REASONS = {"I/O error": "io-error", "watchdog": "watchdog", "migrated": "postmigrate"}

_SHUT_OFF = {
    "crashed": Sign.CRASHED, "failed": Sign.CRASHED, "daemon": Sign.CRASHED,
    "migrated": Sign.MOVED, "destroyed": Sign.STOPPED_BY_HOST, "saved": Sign.STOPPED_BY_HOST,
    "shutdown": Sign.SHUT_DOWN,
}  # fmt: skip
_NO_SUCH = ("failed to get domain", "Domain not found")


class DomainEyes:
    """Looks at a domain.  Use it in a ``with`` block: its events run for that long.

    :param translator: the folder of its translator, where one is armed.
    :param qmp: a monitor of QEMU beside libvirt's, on this machine.  Of a translated guest libvirt
        cannot say whether it runs, since each trap stops it; and libvirt's own monitor may lag.
    """

    def __init__(
        self, virsh: Virsh, name: str, *, translator: Path | None = None, qmp: Path | None = None
    ) -> None:
        self._virsh = virsh
        self._name = name
        self._translator = translator
        self._qmp = qmp
        self._domain: Domain | None = None
        self._events: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._came: list[Event] = []
        self._console: tuple[Path, int] | None = None

    async def __aenter__(self) -> Self:
        """Begin to listen.

        :raises HypervisorError: there is no such domain, or libvirt does not answer.
        """
        live = await asyncio.to_thread(self._virsh.live, self._name)
        self._domain = read_domain(live.encode(), where=self._name)
        self._console = next(filter(None, map(_begin, self._domain.consoles)), None)
        command = [
            *self._virsh.command(), "event", "--domain", self._name, "--all", "--loop",
            "--timestamp",
        ]  # fmt: skip
        try:
            self._events = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
                limit=MAX_LINE,
            )
        except FileNotFoundError as error:
            raise EnvironmentLackError(
                f"{command[0]}: no such program", remedy="apt-get install libvirt-clients"
            ) from error
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Listen no more."""
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._events is not None:
            with contextlib.suppress(ProcessLookupError):
                self._events.kill()
            await self._events.wait()

    async def look(self) -> tuple[Sample, tuple[Event, ...]]:
        """How the domain is now."""
        sample = Sample(at=time.monotonic())
        ended: list[Event] = []
        try:
            said = await asyncio.to_thread(
                self._virsh.run, "domstate", "--reason", "--domain", self._name
            )
        except HypervisorError as error:
            if any(words in error.message for words in _NO_SUCH):
                sample = sample.replace(process_gone="libvirt does not know it any more")
        else:
            sample = sample.replace(state=run_state(said))
            # An event can be missed, while virsh connects; what became of it stays to be asked.
            ended = [Event(at=sample.at, sign=sign, words=said.strip()) for sign in _why(said)]
        if self._qmp is not None and sample.state in {"running", "paused"}:
            sample = await self._by_monitor(self._qmp, sample)
        elif sample.state == "running":
            sample = sample.replace(vcpus=await self._vcpus(), agent=await self._agent())
        sample = console_sample(sample, await asyncio.to_thread(self.console))
        sample = await self._translated(sample)
        came, self._came = self._came, []
        return sample, (*came, *ended)

    async def _by_monitor(self, path: Path, sample: Sample) -> Sample:
        """How it is, by a monitor of its QEMU that is not libvirt's; nobody keeps it to himself."""
        with contextlib.suppress(MonitorGoneError, CommandRefusedError):
            async with Monitor.session(path) as monitor:
                return sample.replace(
                    state=await monitor.status(),
                    vcpus=positions(await monitor.human("info registers -a")),
                )
        return sample.replace(state="")

    async def _vcpus(self) -> tuple[Registers, ...]:
        with contextlib.suppress(HypervisorError):
            text = await asyncio.to_thread(
                self._virsh.run,
                "qemu-monitor-command", "--domain", self._name, "--hmp", "info registers -a",
            )  # fmt: skip
            return positions(text)
        return ()

    async def _agent(self) -> bool | None:
        if self._domain is None or not self._domain.agent:
            return None
        try:
            await asyncio.to_thread(
                self._virsh.run,
                "qemu-agent-command", "--domain", self._name, "--timeout", str(AGENT_TIMEOUT_S),
                '{"execute":"guest-ping"}',
            )  # fmt: skip
        except HypervisorError:
            return False
        return True

    async def _translated(self, sample: Sample) -> Sample:
        if self._translator is None:
            return sample
        try:
            client = await TranslatorClient.connect(self._translator)
        except TranslatorError:
            return sample.replace(translator_gone=True)
        try:
            status = await client.status()
        except TranslatorError as error:
            return sample.replace(translator_warning=error.message)
        finally:
            await client.close()
        return counted(sample, status, status.problem)

    async def set_clock(self) -> None:
        """Have the guest's agent set its clock from the hardware clock that QEMU shows it.

        :raises HypervisorError: there is no agent, or it does not do it.
        """
        await asyncio.to_thread(self._virsh.run, "domtime", "--domain", self._name, "--sync")

    def console(self) -> bytes:
        """What it printed since the watch began, where its console goes to a file of this host."""
        if self._console is None:
            return b""
        path, begun = self._console
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                # A file that has become shorter was rotated: all of it is new.
                file.seek(max(begun if begun <= size else 0, size - MAX_BYTES))
                return file.read(MAX_BYTES)
        except OSError:
            return b""

    async def _read(self) -> None:
        assert self._events is not None and self._events.stdout is not None
        while True:
            try:
                line = await self._events.stdout.readline()
            except ValueError:  # longer than MAX_LINE: not an event
                continue
            if not line:
                return
            event = read_event(line.decode(errors="replace"), self._name, time.monotonic())
            if event is not None and len(self._came) < MAX_EVENTS:
                self._came.append(event)


def read_event(line: str, domain: str, at: float) -> Event | None:
    """A line of ``virsh event`` as a sign; None for one that says nothing about life or death."""
    match = _EVENT.search(line)
    if match is None:
        return None
    # Newer versions quote the name, which may hold anything.
    rest = line[match.end() :].strip()
    for spelled in (f"'{domain}'", domain):
        if rest.startswith(spelled):
            words = rest[len(spelled) :].lstrip(": ").strip()
            break
    else:
        return None
    if match[1] == "lifecycle":
        sign = next((sign for begin, sign in _LIFECYCLE if words.startswith(begin)), None)
    else:
        sign = _KINDS.get(match[1])
    return None if sign is None else Event(at=at, sign=sign, words=words[:200])


def run_state(said: str) -> str:
    """``virsh domstate --reason`` (``paused (I/O error)``) as one of QEMU's run states."""
    state, _, reason = said.strip().partition(" (")
    word = _STATES.get(state, "")
    return _REASONS.get(reason.rstrip(")"), word) if word == "paused" else word


def _why(said: str) -> tuple[Sign, ...]:
    """Why a domain is shut off, by ``virsh domstate --reason``."""
    state, _, reason = said.strip().partition(" (")
    sign = _SHUT_OFF.get(reason.rstrip(")")) if state == "shut off" else None
    return () if sign is None else (sign,)


def _begin(path: str) -> tuple[Path, int] | None:
    file = Path(path)
    try:
        return file, file.stat().st_size
    except OSError:
        return None
