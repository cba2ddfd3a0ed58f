"""The destination is killed in the middle of a move: the source goes on, or both are held."""

import asyncio

import pytest

from isthmus.errors import RolledBackError, UndecidedError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.migration.hosts import recover, unfinished
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.migration.record import records

pytestmark = pytest.mark.lab

SLOW = Options(bandwidth=40 << 20)  # so that a move takes seconds
POINTS = [
    Phase.PREPARED, Phase.MOVING, Phase.SWITCHED, Phase.STARTING, Phase.VERIFYING, Phase.COMMITTING,
]  # fmt: skip


def killer(world, point: Phase, after_s: float = 0.0):
    """A checkpoint that kills the destination at ``point``."""
    tasks = []

    async def kill() -> None:
        await asyncio.sleep(after_s)
        newest = max((world.store.run / "g").iterdir(), key=lambda path: path.stat().st_ctime)
        victim = process.find(newest)
        assert victim is not None
        victim.kill()

    async def checkpoint(phase: Phase) -> None:
        if phase is point and after_s:
            tasks.append(asyncio.create_task(kill()))
        elif phase is point:
            await kill()

    return checkpoint


async def wrote(world) -> None:
    """Wait until the guest has written to its disk on the destination."""
    newest = max((world.store.run / "g").iterdir(), key=lambda path: path.stat().st_ctime)
    async with asyncio.timeout(180), Monitor.session(newest / "observe.sock") as monitor:
        while not any(
            device["stats"]["wr_operations"] for device in await monitor.execute("query-blockstats")
        ):
            await asyncio.sleep(0.05)


async def test_killed_at_any_point(world) -> None:
    guest = await world.born()
    for point in POINTS:
        after_s = 0.7 if point is Phase.MOVING else 0.0
        with pytest.raises(RolledBackError):
            await world.hosts.move("g", "Penryn", SLOW, checkpoint=killer(world, point, after_s))
        await world.one_runs(guest)
        assert world.store.read("g").host == "phenom"
    ended = [record.phase for _, record in records(world.store.journals)]
    assert ended == [Phase.ROLLED_BACK] * len(POINTS)
    # And it can still move.
    await world.hosts.move("g", "Penryn", Options())
    await world.one_runs(guest)


async def test_a_guest_that_wrote_to_its_disk_is_held(world) -> None:
    disk = world.folder / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    guest = await world.born(disk=disk)

    async def checkpoint(phase: Phase) -> None:
        if phase is Phase.VERIFYING:
            await wrote(world)
            await killer(world, phase)(phase)

    with pytest.raises(UndecidedError):
        await world.hosts.move("g", "Penryn", Options(), checkpoint=checkpoint)
    assert await world.running() == []
    (pending,) = unfinished(world.store)
    with pytest.raises(UndecidedError):
        await recover(world.store, pending)
    assert await world.running() == []
    await recover(world.store, pending, use="source")
    assert await world.running() == [guest.process.directory]
    assert unfinished(world.store) == []


async def test_the_reason_of_a_destination_that_cannot_load_the_stream_is_told(world) -> None:
    """The source's QEMU knows only that nobody reads any more."""
    guest = await world.born()

    def smaller(spec):
        return spec.replace(memory_mib=spec.memory_mib // 2)

    with pytest.raises(RolledBackError, match=r"mismatch: pc\.ram"):
        await world.hosts.move("g", "Penryn", Options(), alter=smaller)
    await world.one_runs(guest)
    assert "mismatch: pc.ram" in records(world.store.journals)[-1][1].error
