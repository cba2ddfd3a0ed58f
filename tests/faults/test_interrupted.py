"""Ctrl-C, SIGTERM and a lost terminal: the command puts things right before it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu import process
from isthmus.migration.phases import Phase
from isthmus.migration.record import records

MAIN = "from isthmus.cli.main import main; main()"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


def command(world, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Where the tests themselves run without a terminal, they ignore some of these.
        ["env", "--default-signal=INT,TERM,HUP", sys.executable, "-c", MAIN, *words],
        env=os.environ
        | {"ISTHMUS_STATE": str(world.store.folder.parent), "ISTHMUS_RUN": str(world.store.run)},
        stderr=subprocess.PIPE,
    )


async def until(condition) -> None:
    async with asyncio.timeout(180):
        while not condition():
            await asyncio.sleep(0.01)


def moves(world) -> bool:
    """Whether the last migration is in the middle of its way."""
    found = records(world.store.journals)
    return bool(found) and found[-1][1].phase is Phase.MOVING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_move_is_settled_by_the_command_itself(world, number: int) -> None:
    guest = await world.born()
    mover = command(world, "migrate", "g", "--to", "Penryn", "--bandwidth", "10")
    try:
        await until(lambda: moves(world))
        mover.send_signal(number)
        said = (await asyncio.to_thread(mover.communicate, timeout=180))[1]
    finally:
        mover.kill()
        mover.wait()
    assert mover.returncode == 4, said
    assert b"runs on its source" in said
    await world.one_runs(guest)


async def test_a_guest_whose_start_is_broken_off_is_not_left_behind(world) -> None:
    starting = command(world, "guest", "start", "web", "--host", "phenom")
    try:
        await until(lambda: world.store.names() or starting.poll() is not None)
        starting.send_signal(signal.SIGINT)
        said = (await asyncio.to_thread(starting.communicate, timeout=180))[1]
    finally:
        starting.kill()
        starting.wait()
    assert starting.returncode == 130, said
    assert world.store.names() == []
    assert process.mentioning(Path(world.store.run)) == []
