"""libvirt's own migration of a running domain, protocol version 3: start, follow, abort, measure.

The five steps Begin, Prepare, Perform, Finish and Confirm are libvirt's (libvirt:
docs/migration.rst; src/libvirt-domain.c, ``virDomainMigrateVersion3Full``).  Peer to peer, the
source's daemon carries them all out: it goes on if whoever asked for the move dies, which is why it
is the way of first choice; direct, this process does, as ``virsh migrate`` without ``--p2p``.

Under TCG the guest must stand still while QEMU begins to track its writes, and its dirty pages are
looked at once only, after it has stopped (:mod:`isthmus.hypervisor.qemu.stream` tells why).
libvirt has no such mode, so QEMU is told through libvirt's monitor passthrough: the guest is
stopped once libvirt has noted that it runs, and let go as soon as the transfer is active.  Disks
that are copied with it are copied first, while it runs.

By postcopy a guest runs at the destination before all its memory is there.  If the link breaks
then, neither copy is whole: both are needed, until libvirt is told to resume
(``VIR_MIGRATE_POSTCOPY_RESUME``, since 8.5; libvirt: docs/migration.rst).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from isthmus.errors import HypervisorError
from isthmus.hypervisor.libvirt.connection import (
    Connection,
    LibvirtError,
    binding,
    call,
)
from isthmus.hypervisor.libvirt.disks import TRANSFERS, Copying, transfer_status
from isthmus.hypervisor.libvirt.passthrough import command
from isthmus.hypervisor.qemu.stream import Transfer
from isthmus.values import Value

POLL_S = 0.1
QUIET_POLL_S = 0.003
QUIET_S = 60.0
"""How long a destination may take until it is being prepared."""
_SLOW_MIB_S = 1
"""While a guest is about to be let go: QEMU must not be through before it runs again."""


class Wishes(Value, frozen=True):
    """How libvirt is to move.

    ``peer`` is the destination's URI as the source's daemon reaches it, empty for a direct move;
    ``link`` where the data goes (libvirt's migration URI), empty for libvirt's choice.
    ``bandwidth`` in bytes/s; ``downtime_limit_ms`` as QEMU's; None for libvirt's own.
    ``parallel``: connections of multifd, 0 for none.  ``copy_storage``: disks are copied as well.
    ``quiet``: stop the guest while QEMU begins to track its writes, see above.
    ``again``: go on with a postcopy that was broken.
    """

    peer: str = ""
    link: str = ""
    bandwidth: int | None = None
    downtime_limit_ms: int | None = None
    postcopy: bool = False
    parallel: int = 0
    copy_storage: bool = False
    tls: bool = False
    persistent: bool = False
    quiet: bool = False
    again: bool = False


class _TooQuickError(HypervisorError):
    """The transfer began before the guest stood still.

    ``left``: how much of its disks was to be copied at the last look but one, 0 where none was.
    """

    def __init__(self, left: int) -> None:
        super().__init__(
            "the guest could not be stopped before its transfer began", remedy="try again"
        )
        self.left = left


class Moved(Value, frozen=True):
    """What libvirt measured: milliseconds and bytes."""

    total_ms: float = 0.0
    downtime_ms: float = 0.0
    moved_bytes: int = 0


def flags(wishes: Wishes) -> int:
    """Libvirt's ``virDomainMigrateFlags`` for these wishes."""
    libvirt = binding()
    chosen = {
        libvirt.VIR_MIGRATE_LIVE: True,
        libvirt.VIR_MIGRATE_PEER2PEER: bool(wishes.peer),
        libvirt.VIR_MIGRATE_PERSIST_DEST: wishes.persistent,
        libvirt.VIR_MIGRATE_UNDEFINE_SOURCE: wishes.persistent,
        libvirt.VIR_MIGRATE_POSTCOPY: wishes.postcopy,
        libvirt.VIR_MIGRATE_PARALLEL: wishes.parallel > 0,
        libvirt.VIR_MIGRATE_NON_SHARED_DISK: wishes.copy_storage,
        libvirt.VIR_MIGRATE_TLS: wishes.tls,
        libvirt.VIR_MIGRATE_POSTCOPY_RESUME: wishes.again,
    }
    return sum(flag for flag, wanted in chosen.items() if wanted)


def parameters(wishes: Wishes) -> dict[str, object]:
    """Libvirt's typed parameters (``VIR_MIGRATE_PARAM_…``) for these wishes."""
    libvirt = binding()
    given: dict[str, object] = {}
    if wishes.link:
        given[libvirt.VIR_MIGRATE_PARAM_URI] = wishes.link
    if wishes.quiet:
        given[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = _SLOW_MIB_S
    elif wishes.bandwidth is not None:
        given[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = _mib(wishes.bandwidth)
    if wishes.postcopy and wishes.bandwidth is not None:
        given[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = _mib(wishes.bandwidth)
    if wishes.parallel:
        given[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = wishes.parallel
    return given


async def migrate(
    domain: Any,
    destination: Connection,
    wishes: Wishes,
    progress: Callable[[Transfer], None],
) -> bool:
    """Move the domain; on return libvirt says that the destination has it and the source not.

    :returns: whether it went by postcopy in the end.
    :raises LibvirtError: libvirt says that it failed.
    :raises DaemonGoneError: the source's daemon went away: how it ended is not known.
    """
    copying = Copying(domain, wishes.bandwidth) if wishes.copy_storage else None
    try:
        return await _migrate(domain, destination, wishes, progress, copying)
    except _TooQuickError as error:
        # Disks were copied quicker than could be followed: quick enough to be waited for.
        if copying is not None:
            copying = Copying(domain, wishes.bandwidth, 2 * error.left) if error.left else None
        return await _migrate(domain, destination, wishes, progress, copying)


async def _migrate(
    domain: Any,
    destination: Connection,
    wishes: Wishes,
    progress: Callable[[Transfer], None],
    copying: Copying | None,
) -> bool:
    """As :func:`migrate`, once.

    :param copying: which is waited for before the guest is stopped.
    :raises _TooQuickError: and nothing has come of it.
    """
    moving = asyncio.ensure_future(_told(domain, destination, wishes))
    following = asyncio.ensure_future(_follow(domain, progress))
    switching = asyncio.ensure_future(_switch(domain, wishes.quiet)) if wishes.postcopy else None
    try:
        if wishes.quiet:
            await _begin_quietly(domain, destination, wishes, moving, copying)
        elif wishes.downtime_limit_ms is not None:
            await _limit(domain, wishes.downtime_limit_ms, moving)
        await asyncio.shield(moving)
    except asyncio.CancelledError:
        # The thread cannot be cancelled; libvirt can, and then the thread ends, too.
        with contextlib.suppress(HypervisorError):
            await call(domain.abortJob)
        with contextlib.suppress(HypervisorError):
            await moving
        raise
    finally:
        for task in (following, switching):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, HypervisorError):
                    await task
    return switching is not None and switching.done() and not switching.cancelled()


async def go_on(domain: Any, destination: Connection, wishes: Wishes) -> None:
    """Go on with a postcopy that was broken; on return the destination has the whole guest.

    QEMU does not know of a silent link before its TCP gives up, after a quarter of an hour; libvirt
    refuses to go on until it does, so both are told (QEMU: qapi/migration.json, ``migrate-pause``).
    Not before the guest runs there, though: until then QEMU there ends if its stream does (QEMU:
    migration/savevm.c, ``qemu_loadvm_state_main``), and the stream may still find its way.

    :raises LibvirtError: libvirt cannot, or not yet.
    """
    there = await destination.find(await call(domain.UUIDString))
    if there is not None and (await command(there, "query-status"))["status"] == "running":
        for end in (domain, there):
            if await transfer_status(end) == "postcopy-active":
                with contextlib.suppress(HypervisorError):
                    await command(end, "migrate-pause")
    limits = Wishes(
        peer=wishes.peer, link=wishes.link, tls=wishes.tls, persistent=wishes.persistent,
        postcopy=True, again=True,
    )  # fmt: skip
    await _told(domain, destination, limits)


def _told(domain: Any, destination: Connection, wishes: Wishes) -> Coroutine[Any, Any, Any]:
    if wishes.peer:
        return call(domain.migrateToURI3, wishes.peer, parameters(wishes), flags(wishes))
    return call(domain.migrate3, destination.handle, parameters(wishes), flags(wishes))


async def under_way(domain: Any) -> bool:
    """Whether libvirt has a job that moves this domain away or takes it in."""
    libvirt = binding()
    stats = await call(domain.jobStats)
    return bool(stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) != libvirt.VIR_DOMAIN_JOB_NONE)


async def sent(domain: Any) -> int:
    """How many bytes of the job that moves this domain have gone; 0 where there is none."""
    return int((await call(domain.jobStats)).get("data_processed", 0))


async def abort(domain: Any) -> None:
    """Abort the job that moves this domain, if there is one."""
    with contextlib.suppress(LibvirtError):
        await call(domain.abortJob)


async def measured(domain: Any) -> Moved:
    """What the last completed move of this domain cost, as libvirt knows it on either side."""
    libvirt = binding()
    try:
        stats = await call(
            domain.jobStats,
            libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED,
        )
    except LibvirtError:
        return Moved()
    return Moved(
        total_ms=float(stats.get("time_elapsed", 0)),
        downtime_ms=float(stats.get("downtime", 0)),
        moved_bytes=int(stats.get("data_processed", 0)),
    )


def _mib(size: int) -> int:
    """Libvirt takes whole MiB/s; less than one is one."""
    return max(1, size >> 20)


def _transfer(stats: dict[str, Any]) -> Transfer:
    return Transfer(
        status="active",
        total=int(stats.get("memory_total", 0)),
        transferred=int(stats.get("memory_processed", 0)),
        remaining=int(stats.get("memory_remaining", 0)),
        total_ms=int(stats.get("time_elapsed", 0)),
        rate_mbps=stats.get("memory_bps", 0) * 8 / 1e6,
        iterations=int(stats.get("memory_iteration", 0)),
    )


async def _follow(domain: Any, progress: Callable[[Transfer], None]) -> None:
    """Tell how far it is."""
    while True:
        await asyncio.sleep(POLL_S)
        with contextlib.suppress(LibvirtError):
            stats = await call(domain.jobStats)
            if stats.get("memory_total"):
                progress(_transfer(stats))


async def _switch(domain: Any, quiet: bool) -> None:
    """Switch to postcopy, once all memory was sent once or, of a quiet move, as soon as it flows.

    An emulated guest's writes are looked at once only, so there is no second pass to wait for.
    """
    while True:
        await asyncio.sleep(POLL_S)
        with contextlib.suppress(LibvirtError):
            stats = await call(domain.jobStats)
            sent = stats.get("memory_total") and stats.get("memory_processed", 0)
            if sent and (quiet or stats.get("memory_iteration", 0) > 1):
                await call(domain.migrateStartPostCopy)
                return


async def _limit(domain: Any, downtime_ms: int, moving: "asyncio.Future[Any]") -> None:
    """Set the downtime limit, which libvirt takes only while the move is under way."""
    while not moving.done():
        with contextlib.suppress(LibvirtError):
            await call(domain.migrateSetMaxDowntime, downtime_ms)
            return
        await asyncio.sleep(QUIET_POLL_S)


_UNLIMITED = (1 << 31) << 20
"""bytes/s; libvirt's own word for no limit is the largest number that it takes."""


async def _begin_quietly(
    domain: Any,
    destination: Connection,
    wishes: Wishes,
    moving: "asyncio.Future[Any]",
    copying: Copying | None,
) -> None:
    """Hold the guest from before QEMU's transfer begins until it is active.

    libvirt notes at the beginning whether the guest runs, to know what to do with it at the other
    end; so it may be stopped as soon as the destination is being prepared, not before.  That takes
    some hundred milliseconds, in which its QEMU starts.  Where the transfer has begun before the
    guest stood still, libvirt is told to abort.

    :param copying: of its disks, which goes before; the guest runs until that is nearly through.
    """
    uuid = await call(domain.UUIDString)
    deadline = time.monotonic() + QUIET_S
    while await destination.find(uuid) is None:
        if moving.done() or time.monotonic() > deadline:
            return
        await asyncio.sleep(QUIET_POLL_S)
    if copying is not None:
        await copying.near_its_end(moving)
        if moving.done():
            return
    others = copying or (Copying(domain, wishes.bandwidth) if wishes.copy_storage else None)
    try:
        async with copying.held() if copying is not None else contextlib.nullcontext():
            await command(domain, "stop")
        if await transfer_status(domain) in TRANSFERS | {"setup"}:
            await abort(domain)
            with contextlib.suppress(HypervisorError):
                await asyncio.shield(moving)
            raise _TooQuickError(copying.before if copying else 0)
        await command(domain, "migrate-set-parameters", {"downtime-limit": 0})
        # Until then QEMU tells how the guest's last move ended.
        while not moving.done() and await transfer_status(domain) not in TRANSFERS:
            if others is not None:
                await others.hurry()
            await asyncio.sleep(QUIET_POLL_S)
    finally:
        # QEMU refuses it once it has stopped the guest for good: "not finalized yet".
        with contextlib.suppress(HypervisorError):
            await command(domain, "cont")
    with contextlib.suppress(LibvirtError):
        await call(domain.migrateSetMaxSpeed, _mib(wishes.bandwidth or _UNLIMITED))
