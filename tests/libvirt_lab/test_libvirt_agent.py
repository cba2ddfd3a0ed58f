"""A guest with QEMU's guest agent: the watch asks it, and it sets the guest's clock."""

import asyncio
import json
import time

import pytest
from libvirt_world import PATIENCE_S, World

from isthmus.errors import HypervisorError
from isthmus.hypervisor.libvirt.connection import call, session

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PAUSE_S = 10.0


async def behind_s(world: World, host: str) -> float:
    """By how many seconds the guest's clock is behind ours; its agent is waited for."""
    deadline = time.monotonic() + PATIENCE_S
    async with session(world.hosts[host].uri) as connection:
        domain = await connection.domain(world.identity)
        while True:
            try:
                said = await call(domain.getTime)
            except HypervisorError:
                assert time.monotonic() < deadline, "the agent does not answer"
                await asyncio.sleep(0.5)
            else:
                return time.time() - said["seconds"] - said["nseconds"] / 1e9


async def paused(world: World, host: str) -> None:
    """Stop the guest for a while: its clock stands still, the hardware clock does not."""
    async with session(world.hosts[host].uri) as connection:
        domain = await connection.domain(world.identity)
        await call(domain.suspend)
        await asyncio.sleep(PAUSE_S)
        await call(domain.resume)


async def test_the_agent_is_asked_and_sets_the_clock(world: World) -> None:
    await world.born(agent=True)
    before = await behind_s(world, "amd")
    await paused(world, "amd")
    assert await behind_s(world, "amd") > before + PAUSE_S / 2
    more = ("--peer", world.peers["intel"], "--watch", "15s", "--sync-clock", "--json")
    with world.migrating("amd", "intel", *more) as command:
        said, complaint = await asyncio.to_thread(command.communicate)
    assert command.returncode == 0, complaint
    assert b"its agent has set its clock" in complaint
    moved, watch = (json.loads(line) for line in said.splitlines())
    assert moved["steps"][-1]["phase"] == "committed"
    assert watch["outlook"] == "lives" and not watch["warnings"]
    assert await behind_s(world, "intel") < before + PAUSE_S / 2
    assert await world.running() == ["intel"]
    await world.ticks(3)
