"""A move through a file: the guest's state is written whole, then read by the other QEMU.

For hosts that cannot reach one another, and for a destination that is to be looked at first.  The
guest stands still from the first byte to the last, so its downtime is the time for all its memory.

QEMU sends its ordinary stream to a socket of ours, and gets it from one: no program is run in the
host, and every QEMU can do it (``file:`` came with 8.2).  There is no way back from a file, so that
the source cannot be told by QEMU that all has been loaded, as in a live move: here the destination
itself is asked, and until it has said so the source is held, whole and ready to go on.

What was written is read only if it is what was written: a file may have gone over a network share.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor, MonitorGoneError
from isthmus.hypervisor.qemu.stream import (
    POLL_S,
    StreamFailedError,
    Transfer,
    cancel,
    measured,
    set_capabilities,
)
from isthmus.values import Value

STALL_S = 120.0
"""A move in which not a byte has come or gone for so long has failed."""

_BLOCK = 1 << 20
_SLACK_BYTES = 64 << 20  # for devices, and for pages that are sent with their headers
_ENDED = frozenset({"completed", "failed", "cancelled"})


class Deposit(Value, frozen=True):
    """The file, and how both QEMUs are reached from this machine.

    ``listen`` is where we wait for the source, as QEMU writes addresses (``unix:PATH``, or
    ``tcp:HOST:0`` for any port); ``gateway`` what the source calls this machine, empty if that is
    ``HOST``; ``feed`` where we reach the destination, empty if that is where it listens.
    """

    path: Path
    listen: str
    gateway: str = ""
    feed: str = ""

    def remove(self) -> None:
        """Remove the file: a guest that runs must not be started once more from its old state."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class Saved(Value, frozen=True):
    """What lies in the file: its size in bytes, and its SHA-256."""

    size: int
    sha256: str


def check_place(path: Path, memory_mib: int) -> None:
    """Refuse a file that cannot take a guest of that size, before anything is touched.

    :raises InputError: it is there already, or cannot be written.
    :raises EnvironmentLackError: there is not enough space.
    """
    if path.exists() or path.is_symlink():
        raise InputError(f"{path}: is there already", remedy="name a new file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written", remedy="name a file in another folder")
    wanted = (memory_mib << 20) + _SLACK_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < wanted:
        raise EnvironmentLackError(
            f"{path.parent}: {free >> 20} MiB are free, {wanted >> 20} MiB may be needed",
            remedy="free some space, or name a file elsewhere",
        )


async def save(
    source: Monitor, deposit: Deposit, progress: Callable[[Transfer], None] = lambda _: None
) -> Saved:
    """Write the whole state of a guest that stands still; on return it is on the disk.

    :raises StreamFailedError: QEMU gave up, or the file could not be written.
    :raises MonitorGoneError: the source cannot be spoken to any more.
    """
    await set_capabilities(
        source, {"events": True, "return-path": False, "pause-before-switchover": False}
    )
    async with _received(deposit) as (dial, writing):
        try:
            await source.execute("migrate", {"uri": dial})
        except CommandRefusedError as error:
            raise StreamFailedError(str(error)) from error
        polling = asyncio.create_task(_ended(source, progress))
        try:
            await asyncio.wait({polling, writing}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and writing.exception() is not None:
                await cancel(source)
                raise StreamFailedError(
                    f"{deposit.path}: {writing.exception()}"
                ) from writing.exception()
            transfer = await polling
        finally:
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await polling
        if transfer.status != "completed":
            raise StreamFailedError(
                f"the move {transfer.status}: {transfer.error or 'QEMU gives no reason'}"
            )
        try:
            return await asyncio.wait_for(writing, STALL_S)
        except (OSError, TimeoutError) as error:
            raise StreamFailedError(f"{deposit.path}: not all was written: {error}") from error


async def load(destination: Monitor, deposit: Deposit, listening: str, saved: Saved) -> None:
    """Have the destination load the guest, which then stands still there.

    :param listening: where it listens, as QEMU writes it.
    :raises StreamFailedError: the file is not what was written, or QEMU does not take it.
    :raises MonitorGoneError: the destination has ended over it.
    """
    found = await asyncio.to_thread(_measure, deposit.path)
    if found != saved:
        raise StreamFailedError(
            f"{deposit.path}: holds {found.size} bytes that are not the {saved.size} written there"
        )
    address = deposit.feed or listening
    try:
        await _feed(address, deposit.path)
    except OSError as error:
        # Why it hung up, QEMU says itself, if it still can.
        with contextlib.suppress(MonitorGoneError):
            transfer = await measured(destination)
            raise StreamFailedError(f"{address}: {transfer.error or error}") from error
        raise
    deadline = time.monotonic() + STALL_S
    while time.monotonic() < deadline:
        if await destination.status() != "inmigrate":
            return
        transfer = await measured(destination)
        if transfer.status == "failed":
            raise StreamFailedError(f"the destination does not load it: {transfer.error}")
        await asyncio.sleep(POLL_S)
    raise StreamFailedError(f"the destination has not loaded it within {STALL_S:g} s")


@contextlib.asynccontextmanager
async def _received(deposit: Deposit) -> AsyncIterator[tuple[str, "asyncio.Task[Saved]"]]:
    """Wait for one connection; what the other end has to dial, and the task that writes."""
    first: asyncio.Future[asyncio.StreamReader] = asyncio.get_running_loop().create_future()
    connections = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        if first.done():
            writer.close()
        else:
            first.set_result(reader)

    kind, _, place = deposit.listen.partition(":")
    if kind == "unix":
        server = await asyncio.start_unix_server(connected, place, limit=_BLOCK)
        dial = deposit.listen
    else:
        host = place.rpartition(":")[0]
        server = await asyncio.start_server(connected, host, 0, limit=_BLOCK)
        dial = f"tcp:{deposit.gateway or host}:{server.sockets[0].getsockname()[1]}"

    async def write() -> Saved:
        reader = await first
        server.close()
        return await _write(reader, deposit.path)

    writing = asyncio.create_task(write())
    try:
        yield dial, writing
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await writing
        server.close()
        for connection in connections:
            connection.close()
        if kind == "unix":
            await asyncio.to_thread(Path(place).unlink, missing_ok=True)


async def _write(reader: asyncio.StreamReader, path: Path) -> Saved:
    """Write what comes, to its end and onto the disk; only this user can read it."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while block := await asyncio.wait_for(reader.read(_BLOCK), STALL_S):
            await asyncio.to_thread(file.write, block)
            digest.update(block)
            size += len(block)
        file.flush()
        await asyncio.to_thread(os.fsync, file.fileno())
    return Saved(size=size, sha256=digest.hexdigest())


async def _feed(address: str, path: Path) -> None:
    kind, _, place = address.partition(":")
    if kind == "unix":
        _, writer = await asyncio.open_unix_connection(place)
    else:
        host, _, port = place.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
    try:
        with path.open("rb") as file:
            while block := await asyncio.to_thread(file.read, _BLOCK):
                writer.write(block)
                await asyncio.wait_for(writer.drain(), STALL_S)
    finally:
        writer.close()
        # All of it was taken: how QEMU hangs up is its affair, and what came of it is asked next.
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _ended(source: Monitor, progress: Callable[[Transfer], None]) -> Transfer:
    while True:
        transfer = await measured(source)
        progress(transfer)
        if transfer.status in _ENDED:
            return transfer
        await asyncio.sleep(POLL_S)


def _measure(path: Path) -> Saved:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return Saved(size=file.tell(), sha256=digest.hexdigest())
    except OSError:
        return Saved(size=0, sha256="")
