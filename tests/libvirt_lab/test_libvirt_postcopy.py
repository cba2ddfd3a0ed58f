"""The link is cut while a guest runs at its destination and its memory is still on the way.

Neither copy is whole then: ending either, or letting the source run, would lose the guest.
"""

import asyncio

import pytest
from libvirt_world import (
    PATIENCE_S,
    World,
    last_record,
    moved_while,
)

from isthmus.errors import IsthmusError, UndecidedError
from isthmus.hypervisor.libvirt.connection import binding, call, session
from isthmus.migration import hosts as recovery
from isthmus.migration import libvirt as mover
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]


async def words(world: World, host: str) -> tuple[int, int]:
    """Libvirt's state and reason of the copy on ``host``."""
    async with session(world.hosts[host].uri) as connection:
        state, reason = await call((await connection.domain(world.identity)).state)
        return state, reason


async def cut(world: World) -> None:
    """Cut the link, once the guest runs at the destination."""
    libvirt = binding()
    wanted = {
        "amd": (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
        "intel": (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    }
    async with asyncio.timeout(PATIENCE_S):
        while {host: await words(world, host) for host in wanted} != wanted:
            await asyncio.sleep(0.02)
    await asyncio.to_thread(world.hosts["amd"].link, up=False)


async def both_wait(world: World) -> None:
    """Both copies are there, and libvirt knows of each that its other half is missing."""
    libvirt = binding()
    async with asyncio.timeout(PATIENCE_S):
        while await words(world, "amd") != (
            libvirt.VIR_DOMAIN_PAUSED,
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        ):
            await asyncio.sleep(0.05)
    assert await world.present() == ["amd", "intel"]


async def test_it_goes_on_by_itself_when_the_link_comes_back(world: World) -> None:
    await world.born()

    async def fault() -> None:
        await cut(world)
        await both_wait(world)
        await asyncio.to_thread(world.hosts["amd"].link, up=True)

    outcome = await moved_while(world, fault, postcopy=True)
    assert isinstance(outcome, MigrationRecord), outcome
    record = last_record(world)
    assert record.phase is Phase.COMMITTED
    assert record.figures is not None and record.figures.postcopy
    assert "postcopy" in record.error, "what happened on the way is told"
    assert await world.present() == ["intel"]
    await world.one_runs("intel")


async def test_where_it_does_not_come_back_nothing_is_ended_and_the_operator_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.born()
    with monkeypatch.context() as briefly:
        briefly.setattr(mover, "PATIENCE_S", 8.0)
        outcome = await moved_while(world, lambda: cut(world), postcopy=True)
    assert isinstance(outcome, UndecidedError), outcome
    assert "its memory is in two parts" in str(outcome)
    record = last_record(world)
    assert record.phase is Phase.UNDECIDED
    assert outcome.remedy == (
        "end neither copy; mend the way between the hosts, then isthmus migrate --resume"
        f" {record.plan.id}: libvirt goes on where it broke"
    )
    await both_wait(world)
    (path,) = recovery.unfinished(world.store)
    for choice in ("source", "destination"):
        with pytest.raises(IsthmusError, match="lose the guest"):
            await recovery.recover(world.store, path, use=choice)
    await both_wait(world)

    await asyncio.to_thread(world.hosts["amd"].link, up=True)
    done = await recovery.recover(world.store, path)
    assert done.phase is Phase.COMMITTED
    assert done.figures is not None and done.figures.postcopy
    assert await world.present() == ["intel"]
    await world.one_runs("intel")
