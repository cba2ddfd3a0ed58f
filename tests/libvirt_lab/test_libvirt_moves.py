"""Guests of real libvirt daemons move between an AMD and an Intel host, and back.

One pair of hosts serves all tests of this file; each has a guest of its own.
"""

import asyncio
import subprocess

import pytest
from libvirt_world import World

from isthmus.errors import RefusedError, RolledBackError
from isthmus.hypervisor.libvirt.connection import call, session
from isthmus.migration import libvirt as mover
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase

pytestmark = pytest.mark.lab


async def journey(world: World, trips: int) -> None:
    """There and back so many times, peer to peer there and direct home, under the payload."""
    await world.born()
    for _ in range(trips):
        record = await world.move("amd", "intel")
        assert record.phase is Phase.COMMITTED
        assert await world.running() == ["intel"]
        record = await world.move("intel", "amd", peer="")
        assert record.phase is Phase.COMMITTED
        assert record.figures is not None
        assert record.figures.moved_bytes > 1 << 20
    await world.one_runs("amd")


async def test_a_levelled_guest_goes_there_and_back(world: World) -> None:
    await journey(world, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_levelled_guest_goes_there_and_back_twenty_times(world: World) -> None:
    await journey(world, 20)


async def test_a_host_offers_what_it_plays_even_where_this_machine_has_kvm(world: World) -> None:
    for host in world.hosts.values():
        async with session(host.uri) as connection:
            told = await call(connection.handle.getDomainCapabilities, None, None, None, None, 0)
        assert "<domain>qemu</domain>" in told


async def test_an_unlevelled_guest_is_refused_stays_by_force_and_lives_translated(
    world: World,
) -> None:
    await world.born(levelled=False)
    bare = Options(translate=False)
    with pytest.raises(RefusedError, match="sse4a"):
        await world.move("amd", "intel", options=bare)
    assert await world.running() == ["amd"]
    with pytest.raises(RolledBackError, match=r"missing features: .*sse4a"):
        await world.move("amd", "intel", options=bare, force=True)
    await world.one_runs("amd")
    verdict = await mover.check(world.request("amd", "intel", options=bare))
    named = tuple({finding.rule for finding in verdict.blocking})
    assert named
    with pytest.raises(RolledBackError, match=r"missing features: .*sse4a"):
        await world.move("amd", "intel", options=bare, accepted=named)
    await world.one_runs("amd")

    # Without a peer its stream goes by a socket of this machine.
    brief = Options(verify_s=3)
    record = await world.move("amd", "intel", options=brief, peer="")
    assert record.phase is Phase.COMMITTED
    assert record.plan.translation is not None
    assert "sse4a" in record.plan.translation.features
    assert await world.present() == ["intel"]
    await world.ticks(3)
    record = await world.move("intel", "amd", options=brief, peer="")
    assert record.plan.translation is None
    assert await world.present() == ["amd"]
    assert await world.running() == ["amd"]
    await world.ticks(3)
    # What it lacked abroad it was not shown there: that is the one thing it may report.
    assert not [fault for fault in world.verdict().faults if fault.kind != "cpuid"]


async def test_one_that_crossed_makers_stays_under_watch_unasked(world: World) -> None:
    await world.born()
    with world.migrating("amd", "intel") as command:
        await asyncio.to_thread(until_line, command, b"watching for 30 min")
        command.kill()
    await world.one_runs("intel")
    with world.migrating("intel", "amd", "--watch", "0") as command:
        _, said = await asyncio.to_thread(command.communicate)
    assert command.returncode == 0, said
    assert b"watching" not in said
    await world.one_runs("amd")


def until_line(process: "subprocess.Popen[bytes]", words: bytes) -> None:
    """Wait until it says ``words`` on its standard error."""
    assert process.stderr is not None
    said = b""
    while line := process.stderr.readline():
        if words in line:
            return
        said += line
    raise AssertionError(said.decode())
