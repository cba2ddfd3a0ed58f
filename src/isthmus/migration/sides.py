"""The two ends of a move: what may be done to the source and to the destination.

Split by role.  The source knows how to give its guest away and how to take it back; the destination
how to receive, how to start (only when told) and how to be destroyed.  Where a translator is armed,
QEMU's debug stub, not QMP, resumes and stops the guest.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from isthmus.errors import HypervisorError, IsthmusError
from isthmus.hypervisor.qemu import disks, process, stream
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor, MonitorGoneError
from isthmus.migration.decision import Copy
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord, Plan, Side
from isthmus.translate import cost
from isthmus.translate.service import TranslatorClient, TranslatorError, spawn

ENDING_S = 10.0
"""How long a process that was told to end may take; one look at it may take longer."""
LOADING_S = 30.0
"""How long a destination whose source has died may still load what had reached it."""
RESUME_S = 5.0
"""How long a source that was told to run may show another state."""
_RUNNING = frozenset({"running", "debug"})  # "debug": in a trap of the translator
_PARTIAL = frozenset({"inmigrate", "internal-error"})


def copy_of(state: str) -> Copy:
    """What a copy of the guest does, by its QEMU's run state."""
    if state in _RUNNING:
        return Copy.RUNNING
    return Copy.PARTIAL if state in _PARTIAL else Copy.HELD


class _End:
    """What both ends share: a monitor that can be found again, and perhaps a translator."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._monitor: Monitor | None = None
        self.translator: TranslatorClient | None = None

    @property
    def qmp(self) -> Path:
        """The path of the monitor."""
        assert self.side.qmp is not None
        return self.side.qmp

    @property
    def monitor(self) -> Monitor:
        """The monitor; the side must have been connected."""
        assert self._monitor is not None
        return self._monitor

    async def connect(self) -> None:
        """Connect, or connect again after the connection was cut; nothing to do if it works.

        :raises MonitorGoneError: nobody answers, not even at the second monitor.
        """
        if self._monitor is not None:
            with contextlib.suppress(MonitorGoneError):
                await self._monitor.status()
                return
            await self._monitor.close()
            self._monitor = None
        try:
            self._monitor = await Monitor.connect(self.qmp)
        except MonitorGoneError:
            if self.side.observe is None or not self.side.observe.exists():
                raise
            self._monitor = await Monitor.connect(self.side.observe)

    async def state(self) -> Copy:
        """The state of this copy of the guest, connecting again if need be."""
        if self.side.identity is not None and not self.side.identity.alive():
            return Copy.DEAD
        try:
            await self.connect()
            state = await self.monitor.status()
        except MonitorGoneError:
            return await self._silent()
        return copy_of(state)

    async def _silent(self) -> Copy:
        """The state of a copy that does not answer."""
        if self.side.identity is not None:
            return Copy.UNREACHABLE if self.side.identity.alive() else Copy.DEAD
        # Only known by its monitor: a socket that refuses connections has no process behind it.
        try:
            _, writer = await asyncio.open_unix_connection(str(self.qmp))
        except (ConnectionRefusedError, FileNotFoundError):
            return Copy.DEAD
        except OSError:
            return Copy.UNREACHABLE
        writer.close()
        return Copy.UNREACHABLE

    async def destroy(self) -> None:
        """End the process for good; afterwards it can never run the guest.

        :raises HypervisorError: it cannot be ended.
        """
        if self.translator is not None:
            with contextlib.suppress(IsthmusError, OSError):
                await self.translator.close()
            self.translator = None
        if self._monitor is not None:
            with contextlib.suppress(MonitorGoneError, CommandRefusedError):
                await self._monitor.execute("quit", timeout=2)
        if self.side.identity is not None:
            await asyncio.to_thread(self.side.identity.kill)
        deadline = time.monotonic() + ENDING_S
        while await self.state() is not Copy.DEAD:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.05)
        else:
            _sweep(self.side.directory)
            return
        raise HypervisorError(f"{self.side.qmp}: that QEMU does not end", remedy="end it by hand")

    async def close(self) -> None:
        """Let go of the connections; changes nothing."""
        if self.translator is not None:
            with contextlib.suppress(IsthmusError, OSError):
                await self.translator.close()
        if self._monitor is not None:
            await self._monitor.close()


def _sweep(folder: Path | None) -> None:
    """Remove the sockets of a process of ours that was killed; what it has written stays."""
    for path in folder.glob("*.sock") if folder is not None else ():
        path.unlink(missing_ok=True)


class Source(_End):
    """The process that runs the guest before the move."""

    def __init__(self, side: Side) -> None:
        super().__init__(side)
        self.emulated = False

    async def attach(self) -> None:
        """Connect to the guest, and to its translator if one is armed.

        :raises MonitorGoneError: nobody answers there.
        """
        await self.connect()
        if self.side.translator is not None and self.translator is None:
            self.translator = await TranslatorClient.connect(self.side.translator)

    async def prepare(self, *, bandwidth: int | None, downtime_limit_ms: int | None) -> None:
        """Check that it runs a guest, and set the limits of the move.

        An emulated CPU gets one pass, whatever the limit: see :mod:`hypervisor.qemu.stream`.

        :raises HypervisorError: the guest is in no state to be moved.
        """
        state = await self.monitor.status()
        if state not in _RUNNING:
            raise HypervisorError(
                f"the guest is {state}, not running", remedy="start or resume it first"
            )
        self.emulated = await stream.is_emulated(self.monitor)
        await stream.prepare_source(
            self.monitor,
            bandwidth=bandwidth,
            downtime_limit_ms=0 if self.emulated else downtime_limit_ms,
        )

    async def hold(self) -> None:
        """Let the guest stand still; its state stays whole."""
        if self.translator is not None:
            await self.translator.hold()
        else:
            await self.monitor.execute("stop")

    async def send(self, uri: str, progress: Callable[[stream.Transfer], None]) -> None:
        """Send the guest; on return both copies stand still and the destination has it all.

        With a translator armed the guest is held first: a ``vCont;c`` of the translator after
        QEMU's own last stop would run the stale source beside the destination.
        """
        if self.translator is not None:
            await self.translator.hold()
        # A held guest stands still already, and only its translator may let it run.
        still = self.emulated and self.translator is None
        await stream.send(self.monitor, uri, still=still, progress=progress)

    async def resume(self) -> None:
        """Take the guest back: the move is off, and the destination can never run it.

        :raises HypervisorError: QEMU does not let it run.
        """
        await self.connect()
        # QEMU resumes by itself when a precopy fails, so wait for its verdict before asking.
        with contextlib.suppress(CommandRefusedError):
            await stream.cancel(self.monitor)
        if self.side.translator is not None:
            await self._resume_served(self.side.translator)
        elif await self.monitor.status() != "running":
            await self.monitor.execute("cont")
        # Under translation it may be looked at in the middle of a trap.
        deadline = time.monotonic() + RESUME_S
        while (state := await self.monitor.status()) not in _RUNNING:
            if time.monotonic() < deadline:
                await asyncio.sleep(0.02)
                continue
            raise HypervisorError(f"the source did not resume its guest: it is {state}")

    async def _resume_served(self, folder: Path) -> None:
        """Let the guest run, served by its translator, or by a new one if that has died."""
        await disks.take_back(self.monitor, self.side.directory)
        if self.translator is not None:
            with contextlib.suppress(TranslatorError):
                await self.translator.resume()
                return
            await self.translator.close()
            self.translator = None
        try:
            self.translator = await TranslatorClient.connect(folder)
        except TranslatorError:
            self.translator = await spawn(folder / "gdb.sock", folder)
            await self.translator.take_over()
        else:
            await self.translator.resume()


class Destination(_End):
    """The process that receives the guest: paused until it is told to run.

    ``owned`` says that it is ours to end: we launched it, or have seen it wait for a guest.  What a
    user named by mistake may be anything, also the source itself by its other monitor.
    """

    def __init__(self, side: Side, *, owned: bool) -> None:
        super().__init__(side)
        self.owned = owned

    async def destroy(self) -> None:
        """End the process for good, if it is ours to end; afterwards it can never run the guest.

        :raises HypervisorError: it cannot be ended.
        """
        if self.owned:
            await super().destroy()

    async def launch(self, plan: Plan, *, lives_with_parent: bool) -> Side:
        """Start what receives the guest, where it does not wait already; returns the side.

        :raises HypervisorError: it does not start.
        """
        if plan.spec is None:
            return self.side
        assert self.side.directory is not None
        launched = await process.start(
            plan.spec, self.side.directory, incoming=True, lives_with_parent=lives_with_parent
        )
        self.side = msgspec.structs.replace(self.side, identity=launched.identity)
        return self.side

    async def attach(self) -> None:
        """Connect to a QEMU that waits for a guest.

        :raises HypervisorError: it does not wait for one.
        """
        await self.connect()
        state = await self.monitor.status()
        if state != "inmigrate":
            raise HypervisorError(
                f"{self.side.qmp}: the destination is {state}, not waiting for a guest",
                remedy="start it with `-incoming defer -S`",
            )
        self.owned = True
        # To a waiting QEMU this means: do not start by yourself when all is loaded, even if you
        # were started without -S (QEMU: monitor/qmp-cmds.c, qmp_stop).
        await self.monitor.execute("stop")

    async def listen(self, uri: str) -> str:
        """Open the channel; returns the address that the source has to dial."""
        return await stream.listen(self.monitor, uri)

    async def start(self) -> None:
        """Let the guest run here; from now on the source is stale."""
        if self.translator is not None:
            await self.translator.resume()
        else:
            await self.monitor.execute("cont")

    async def stop(self) -> None:
        """Stop the guest here."""
        if self.translator is not None:
            await self.translator.hold()
        else:
            await self.monitor.execute("stop")

    async def loaded(self) -> Copy:
        """The state of this copy once it has loaded what its dead source had sent.

        All of the guest may be on its way in the connection; else QEMU sees its end, and gives up.
        """
        deadline = time.monotonic() + LOADING_S
        while (state := await self.state()) is Copy.PARTIAL:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.1)
        return state

    async def last_words(self, *, patience_s: float) -> str:
        """What a process of ours that has ended said last, empty for one that lives.

        :param patience_s: how long it is given to end.
        """
        if self.side.directory is None or self.side.identity is None:
            return ""
        deadline = time.monotonic() + patience_s
        while self.side.identity.alive():
            if time.monotonic() >= deadline:
                return ""
            await asyncio.sleep(0.02)
        return process.last_words(self.side.directory / "qemu.log")

    async def held_by_translator(self) -> str:
        """How its translator keeps the guest from its work, for a reason; empty if it does not."""
        if self.translator is None:
            return ""
        try:
            held = cost.while_silent(await self.translator.status())
        except IsthmusError:
            return ""
        return f"; {held}" if held else ""

    def file(self, name: str) -> Path | None:
        """That file of a process of ours, which writes it from its start; None if there is none."""
        folder = self.side.directory
        path = folder / name if folder is not None else None
        return path if path is not None and path.exists() else None

    async def touched_disk(self) -> bool:
        """Whether the guest has written to any disk since this process was started."""
        answer = await self.monitor.execute("query-blockstats")
        return any(
            device.get("stats", {}).get(key, 0) > 0
            for device in answer
            for key in ("wr_operations", "unmap_operations", "zone_append_operations")
        )


def processes(record: MigrationRecord) -> tuple[Source, Destination]:
    """The ends that are processes of this machine, spoken to by their monitors."""
    plan = record.plan
    destination = Destination(
        _found(plan.destination),
        owned=plan.spec is not None or record.phase not in {Phase.OBSERVED, Phase.PREPARING},
    )
    return Source(plan.source), destination


def _found(side: Side) -> Side:
    """The side with its process found again, where a crash came before it was written down."""
    if side.identity is not None or side.directory is None:
        return side
    return msgspec.structs.replace(side, identity=process.find(side.directory))
