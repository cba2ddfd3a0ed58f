"""The process that moves the guest is killed with SIGKILL: `isthmus status` settles it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.migration.hosts import unfinished
from isthmus.migration.phases import FINAL
from isthmus.migration.record import records

pytestmark = pytest.mark.lab

MOVER = """
import asyncio, sys
from pathlib import Path
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.engine import Options
from isthmus.migration.hosts import Hosts

point, folder, host = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

async def checkpoint(phase):
    if phase == point:
        print(phase, flush=True)
        await asyncio.sleep(60)

async def main():
    qemu = find_qemu()
    cpus = await read_cpus(qemu, Accelerator.TCG)
    store = GuestStore(folder / "state", folder / "run")
    hosts = Hosts(qemu, Accelerator.TCG, cpus, store)
    await hosts.move("g", host, Options(bandwidth=100 << 20), checkpoint=checkpoint)

asyncio.run(main())
"""
POINTS = ["preparing", "prepared", "moving", "switched", "starting", "verifying", "committing"]


def killed_at(point: str, folder: Path, host: str) -> None:
    """Start a mover and kill it when it has written that it enters ``point``."""
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, point, folder, host], stdout=subprocess.PIPE, text=True
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
        timeout=60,
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
