"""The disks that libvirt copies with a guest, followed by QEMU's block jobs while they are copied.

libvirt turns to the memory as soon as the disks are equal (libvirt: src/qemu/qemu_migration.c,
``qemuMigrationSrcNBDStorageCopy``), and by then a quiet guest must stand still
(:mod:`isthmus.hypervisor.libvirt.move`).  So the end of the copying has to be seen coming.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from isthmus.hypervisor.libvirt.passthrough import command
from isthmus.hypervisor.qemu.monitor import CommandRefusedError
from isthmus.hypervisor.qemu.stream import read_transfer

TRANSFERS = frozenset({"active", "pre-switchover", "device", "postcopy-active"})
"""QEMU's words for a transfer whose tracking of writes has begun (qapi/migration.json)."""

LOOK_S = 0.003
_FAST = 1 << 30
"""bytes/s; how fast disks may be copied where there is no limit."""
_SLOW = 1 << 20
_REST_S = 0.06
"""What is left of the copying when its end has come: that many seconds."""
_AHEAD_S = 0.5
"""No more is copied until the next look, which may come late on a busy machine, than that share of
a second of what is left: so the end is not passed unseen."""


async def transfer_status(domain: Any) -> str:
    """QEMU's word for how far the transfer of the memory is, the last one's before it begins."""
    return read_transfer(await command(domain, "query-migrate")).status


class Copying:
    """The copying of a guest's disks.

    It goes at the speed that is wished: libvirt has been told of a slow one for the beginning of
    the memory's transfer, and takes that for the disks, too.

    :param bandwidth: bytes/s, None for no limit.
    :param rest: bytes left at which the end has come, None for some milliseconds of copying.
    """

    def __init__(self, domain: Any, bandwidth: int | None, rest: int | None = None) -> None:
        self._domain = domain
        self._speed = bandwidth or _FAST
        self._rest = int(self._speed * _REST_S) if rest is None else rest
        self._told: dict[str, int] = {}
        self._left: int | None = None
        self.before = 0
        """Bytes that were left, of the disk with most, at the last look but one; 0 if none was."""

    async def near_its_end(self, moving: "asyncio.Future[Any]") -> None:
        """Wait until the end has come or gone by, or ``moving`` is over."""
        while not moving.done():
            left = await self._look()
            if left is not None:
                self.before, self._left = self._left or 0, left
                if left <= self._rest:
                    return
            elif await transfer_status(self._domain) in TRANSFERS:
                return  # there was no disk to be copied
            await asyncio.sleep(LOOK_S)

    async def hurry(self) -> None:
        """Let all that is left be copied as fast as it may be."""
        for job in await command(self._domain, "query-block-jobs"):
            await self._pace(job["device"], self._speed)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Nothing is copied meanwhile."""
        names = sorted(self._told)
        try:
            await self._each("block-job-pause", names)
            yield
        finally:
            await self._each("block-job-resume", names)

    async def _look(self) -> int | None:
        """Pace the jobs; returns what is left of the largest, None while not all of them know."""
        jobs = await command(self._domain, "query-block-jobs")
        for job in jobs:
            speed = self._speed
            while speed > _SLOW and job["len"] - job["offset"] < speed * _AHEAD_S:
                speed //= 2
            await self._pace(job["device"], speed)
        # "len" is 0 before the job has looked at the disk, and where it has nothing to copy.
        if not jobs or not all(job["len"] or job["ready"] for job in jobs):
            return None
        return max(int(job["len"] - job["offset"]) for job in jobs)

    async def _pace(self, name: str, speed: int) -> None:
        if self._told.get(name) != speed:
            self._told[name] = speed
            order = {"device": name, "speed": speed}
            with contextlib.suppress(CommandRefusedError):  # the job has ended meanwhile
                await command(self._domain, "block-job-set-speed", order)

    async def _each(self, order: str, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(CommandRefusedError):
                await command(self._domain, order, {"device": name})
