"""Precopy between two QEMU processes: the source's and the destination's half, spoken in QMP.

Three choices make the hand-over safe, whatever dies when:

- the destination is started with ``-S``: it never runs by itself, only when we say so;
- the source uses the return path: it reports ``completed`` only after the destination has loaded
  everything, else it fails, and QEMU lets the guest run on (QEMU 7.2: migration/migration.c,
  ``migration_completion`` and ``await_return_path_close_on_source``);
- nothing is ever resumed on one side before the other is known to be stopped.

So after ``completed`` the source sits in run state ``postmigrate`` and both copies stand still.

Under TCG a fourth: no look at the dirty pages while a vCPU runs.  QEMU's soft MMU may mark a page
as written in its TLB just after the migration thread has cleared that page's dirty bit; all later
writes to it are then lost to the destination (QEMU 7.2: accel/tcg/cputlb.c, ``notdirty_write``
tests and sets without a lock against ``tlb_reset_dirty``).  Seen here: a spinlock's release was
lost, and the guest span for ever.  KVM's dirty log is kept by the kernel and needs none of this.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import msgspec
from qemu.qmp import EventListener

from isthmus.errors import HypervisorError
from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor
from isthmus.values import Value

POLL_S = 0.1
LOAD_TIMEOUT_S = 60.0
_ENDED = frozenset({"completed", "failed", "cancelled"})
_WAITING = "pre-switchover"


class Transfer(Value, frozen=True):
    """How far a precopy is.  Sizes in bytes, times in milliseconds, rate in bits/s times 10^6."""

    status: str
    total: int = 0
    transferred: int = 0
    remaining: int = 0
    total_ms: int = 0
    downtime_ms: float | None = None
    rate_mbps: float = 0.0
    iterations: int = 0
    error: str = ""


class StreamFailedError(HypervisorError):
    """The precopy failed; QEMU's reason is in the message.  The source was not handed over."""


class _Ram(msgspec.Struct):
    total: int = 0
    transferred: int = 0
    remaining: int = 0
    mbps: float = 0.0
    dirty_sync_count: int = msgspec.field(name="dirty-sync-count", default=0)


class _Query(msgspec.Struct):
    status: str = "none"
    ram: _Ram = msgspec.field(default_factory=_Ram)
    total_time: int = msgspec.field(name="total-time", default=0)
    downtime: float | None = None
    error_desc: str = msgspec.field(name="error-desc", default="")


def read_transfer(answer: Any) -> Transfer:
    """Read the answer to ``query-migrate``; raises :class:`HypervisorError` if it is malformed."""
    try:
        query = msgspec.convert(answer, _Query)
    except msgspec.ValidationError as error:
        raise HypervisorError(f"query-migrate: unexpected answer: {error}") from error
    return Transfer(
        status=query.status,
        total=query.ram.total,
        transferred=query.ram.transferred,
        remaining=query.ram.remaining,
        total_ms=query.total_time,
        downtime_ms=query.downtime,
        rate_mbps=query.ram.mbps,
        iterations=query.ram.dirty_sync_count,
        error=query.error_desc,
    )


async def is_emulated(monitor: Monitor) -> bool:
    """Whether this QEMU emulates its CPU (TCG) instead of using KVM."""
    return not (await monitor.execute("query-kvm"))["enabled"]


async def prepare_source(
    source: Monitor, *, bandwidth: int | None = None, downtime_limit_ms: int | None = None
) -> None:
    """Set capabilities and limits on the source.

    :param bandwidth: bytes per second, None for no limit of ours (QEMU's default is 128 MiB/s).
    :param downtime_limit_ms: None for QEMU's default; 0 makes QEMU send all memory once, then stop
        the guest and send what was written meanwhile (migration/migration.c: the threshold under
        which it looks at the dirty pages again is limit times bandwidth, so never).
    """
    await set_capabilities(source, {"events": True, "return-path": True})
    limits: dict[str, object] = {}
    if bandwidth is not None:
        limits["max-bandwidth"] = bandwidth
    if downtime_limit_ms is not None:
        limits["downtime-limit"] = downtime_limit_ms
    if limits:
        await source.execute("migrate-set-parameters", limits)


async def listen(destination: Monitor, uri: str) -> str:
    """Let the destination listen on ``uri`` and return the address the source has to dial.

    A ``tcp:HOST:0`` gets its port from the system.
    """
    await set_capabilities(destination, {"events": True})
    await destination.execute("migrate-incoming", {"uri": uri})
    if not uri.startswith("tcp:"):
        return uri
    answer = await destination.execute("query-migrate")
    for address in answer.get("socket-address", ()):
        if address.get("type") == "inet":
            return f"tcp:{address['host']}:{address['port']}"
    raise HypervisorError("the destination did not tell its listening port")


async def send(
    source: Monitor,
    uri: str,
    *,
    still: bool = False,
    progress: Callable[[Transfer], None] = lambda _: None,
) -> Transfer:
    """Move the guest's state to ``uri``; return when it has all been loaded at the other end.

    :param still: stop the guest while QEMU begins to track its writes (needed under TCG).
    :raises StreamFailedError: it failed or was cancelled.
    :raises MonitorGoneError: the source cannot be spoken to any more.
    """
    with source.events("MIGRATION") as events:
        await set_capabilities(source, {"pause-before-switchover": still})
        try:
            await (_begin_still(source, uri) if still else _begin(source, uri))
        except CommandRefusedError as error:
            raise StreamFailedError(str(error)) from error
        polling = asyncio.create_task(_poll(source, progress))
        try:
            status = await _end(source, events, polling)
        finally:
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError, HypervisorError):
                await polling
    if status == "completed":
        return Transfer(status=status)
    transfer = read_transfer(await source.execute("query-migrate"))
    raise StreamFailedError(f"the move {status}: {transfer.error or 'QEMU gives no reason'}")


async def _begin(source: Monitor, uri: str) -> None:
    await source.execute("migrate", {"uri": uri})


async def _begin_still(source: Monitor, uri: str) -> None:
    """Begin with the guest stopped; it runs again when QEMU has set up its tracking.

    The ``cont`` may come so late that QEMU has sent everything, but not after the switch-over:
    QEMU waits for :func:`_switch_over` there, which stops the guest again.
    """
    await source.execute("stop")
    try:
        await _begin(source, uri)
        while read_transfer(await source.execute("query-migrate")).status == "setup":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    finally:
        await source.execute("cont")


async def _switch_over(source: Monitor) -> None:
    """Let QEMU send the rest, of a guest that stands still."""
    await source.execute("stop")
    await source.execute("migrate-continue", {"state": _WAITING})


async def measured(source: Monitor) -> Transfer:
    """The final figures of the last precopy of this source."""
    return read_transfer(await source.execute("query-migrate"))


async def cancel(source: Monitor) -> None:
    """Cancel a running precopy and wait until QEMU has let go of it."""
    await source.execute("migrate_cancel")
    for _ in range(int(LOAD_TIMEOUT_S / 0.02)):
        status = read_transfer(await source.execute("query-migrate")).status
        if status in _ENDED or status == "none":
            return
        await asyncio.sleep(0.02)
    raise HypervisorError("QEMU does not finish cancelling the move")


async def _end(source: Monitor, events: EventListener, polling: "asyncio.Task[str]") -> str:
    """The final status, from the event (at once) or the poll (if the event was lost)."""
    while True:
        getter = asyncio.create_task(events.get())
        done, _ = await asyncio.wait({getter, polling}, return_when=asyncio.FIRST_COMPLETED)
        if getter not in done:
            getter.cancel()
            return polling.result()
        event = getter.result()
        data = event.get("data")
        status = str(data.get("status")) if isinstance(data, dict) else ""
        if status == _WAITING:
            await _switch_over(source)
        if status in _ENDED:
            return status


async def _poll(source: Monitor, progress: Callable[[Transfer], None]) -> str:
    while True:
        await asyncio.sleep(POLL_S)
        transfer = read_transfer(await source.execute("query-migrate"))
        progress(transfer)
        if transfer.status in _ENDED:
            return transfer.status


async def set_capabilities(monitor: Monitor, wanted: dict[str, bool]) -> None:
    """Switch capabilities of the migration on or off; the others stay."""
    await monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": on} for name, on in wanted.items()]},
    )


async def last_stamp(events: EventListener, *, patience_s: float) -> float | None:
    """The time of the latest event that has come, in Unix seconds by QEMU's own clock."""
    latest: float | None = None
    deadline = time.monotonic() + patience_s
    while latest is None or not events.empty():
        if events.empty():
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.001)
            continue
        stamp = (await events.get()).get("timestamp")
        if isinstance(stamp, dict):
            latest = float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    return latest
