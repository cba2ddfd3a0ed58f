"""The process that moves the guest is killed with SIGKILL: `isthmus status` settles it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.migration.hosts import unfinished
from isthmus.migration.phases import FINAL
from isthmus.migration.record import records
from isthmus.qualification.demo.listener import cpuid_bits

pytestmark = pytest.mark.lab

MOVER = """
import asyncio, sys
from pathlib import Path
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.options import Options
from isthmus.migration.hosts import Hosts

point, folder, host, translate = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "1"

async def checkpoint(phase):
    if phase == point:
        print(phase, flush=True)
        await asyncio.sleep(600)

async def main():
    qemu = find_qemu()
    cpus = await read_cpus(qemu, Accelerator.TCG)
    store = GuestStore(folder / "state", folder / "run")
    hosts = Hosts(qemu, Accelerator.TCG, cpus, store)
    options = Options(bandwidth=100 << 20, translate=translate)
    await hosts.move("g", host, options, checkpoint=checkpoint)

asyncio.run(main())
"""
POINTS = ["preparing", "prepared", "moving", "switched", "starting", "verifying", "committing"]


def killed_at(point: str, folder: Path, host: str, *, translate: bool = False) -> None:
    """Start a mover and kill it when it has written that it enters ``point``."""
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, point, folder, host, str(int(translate))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert mover.stdout is not None
    assert mover.stdout.readline().strip() == point
    mover.kill()
    mover.wait()
    mover.stdout.close()


def status(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", "status"],
        env=os.environ
        | {"ISTHMUS_STATE": str(folder / "state"), "ISTHMUS_RUN": str(folder / "run")},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


async def test_killed_at_any_point(world) -> None:
    guest = await world.born()
    for point in POINTS:
        here = world.store.read("g").host
        goal = "Penryn" if here == "phenom" else "phenom"
        killed_at(point, world.folder, goal)
        done = status(world.folder)
        assert done.returncode == 0, done.stderr
        assert unfinished(world.store) == [], (point, done.stdout, done.stderr)
        await world.one_runs(guest)
        # Once the destination may have run, it is the guest; before, the source is.
        forward = point in {"starting", "verifying", "committing"}
        assert world.store.read("g").host == (goal if forward else here), point
    assert all(record.phase in FINAL for _, record in records(world.store.journals))


async def test_killed_while_a_translated_guest_moves(world) -> None:
    """Out with the translator and home from under it; each time the mover is killed."""
    guest = await world.born(levelled=False)
    lost = world.hosts.cpus.offered("phenom").features - world.hosts.cpus.offered("Penryn").features
    for point, goal, arrives in [
        ("switched", "Penryn", False),
        ("starting", "Penryn", True),
        ("switched", "phenom", False),
        ("verifying", "phenom", True),
    ]:
        here = world.store.read("g").host
        killed_at(point, world.folder, goal, translate=True)
        done = status(world.folder)
        assert done.returncode == 0, done.stderr
        assert unfinished(world.store) == [], (point, done.stdout, done.stderr)
        assert world.store.read("g").host == (goal if arrives else here), point
        await world.one_runs(guest, cpuid_may_lose=cpuid_bits(lost))
