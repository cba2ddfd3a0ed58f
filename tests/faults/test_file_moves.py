"""A guest that goes through a file: one copy of it runs, whatever happens, and no file stays."""

import asyncio
import errno
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_mover_dies import status

from isthmus.errors import InputError, RolledBackError
from isthmus.hypervisor.qemu import through_file
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.through_file import Deposit, Saved
from isthmus.migration.hosts import unfinished
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.qualification.demo.listener import cpuid_bits

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

MOVER = """
import asyncio, sys
from pathlib import Path
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.options import Options
from isthmus.migration.hosts import Hosts

point, folder, host = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

async def checkpoint(phase):
    if phase == point:
        print(phase, flush=True)
        await asyncio.sleep(600)

async def main():
    qemu = find_qemu()
    cpus = await read_cpus(qemu, Accelerator.TCG)
    store = GuestStore(folder / "state", folder / "run")
    hosts = Hosts(qemu, Accelerator.TCG, cpus, store)
    options = Options(through=folder / "kept")
    await hosts.move("g", host, options, checkpoint=checkpoint)

asyncio.run(main())
"""


def killed_at(point: str, folder: Path, host: str) -> None:
    """Start a mover and kill it when it has written that it enters ``point``."""
    mover = subprocess.Popen(
        [sys.executable, "-c", MOVER, point, folder, host], stdout=subprocess.PIPE, text=True
    )
    assert mover.stdout is not None
    try:
        assert mover.stdout.readline().strip() == point
    finally:
        mover.kill()
        mover.wait()
        mover.stdout.close()


async def test_there_and_back_both_standing_still_while_it_lies_in_the_file(world) -> None:
    guest = await world.born()
    path = world.folder / "kept"
    seen = []

    async def checkpoint(phase: Phase) -> None:
        if phase is Phase.SWITCHED:
            facts = path.stat()
            assert stat.S_IMODE(facts.st_mode) == 0o600, "a guest's memory is nobody else's"
            assert await world.running() == []
            seen.append(facts.st_size)

    for host in ("Penryn", "phenom"):
        record = await world.hosts.move(
            "g", host, Options(through=path, verify_s=60), checkpoint=checkpoint
        )
        assert record.phase is Phase.COMMITTED
        assert record.figures is not None
        assert record.figures.moved_bytes == seen[-1] > 16 << 20
        assert record.figures.downtime_ms == record.figures.total_ms > 0
        assert not path.exists(), "a guest that runs is not to be started from its past"
        await world.one_runs(guest)
    assert len(seen) == 2
    await world.hosts.move("g", "Penryn", Options(verify_s=60))  # and live, as ever
    await world.one_runs(guest)


async def test_an_unlevelled_guest_is_translated_after_it_as_after_a_live_move(world) -> None:
    guest = await world.born(levelled=False)
    lost = world.hosts.cpus.offered("phenom").features - world.hosts.cpus.offered("Penryn").features
    options = Options(through=world.folder / "kept", translate=True, verify_s=60)
    for host in ("Penryn", "phenom"):
        await world.hosts.move("g", host, options)
        await world.one_runs(guest, cpuid_may_lose=cpuid_bits(lost))


async def _flip(path: Path) -> Saved:
    """Change bytes all over the file, as a broken share would; what it then holds."""
    with path.open("r+b") as file:
        for at in range(0, path.stat().st_size, 4096):
            file.seek(at)
            file.write(b"\xff" * 16)
    return await asyncio.to_thread(through_file._measure, path)


async def _damaged_unseen(source: Monitor, deposit: Deposit, progress) -> Saved:
    await SAVE(source, deposit, progress)
    return await _flip(deposit.path)


async def _damaged(source: Monitor, deposit: Deposit, progress) -> Saved:
    saved = await SAVE(source, deposit, progress)
    await _flip(deposit.path)
    return saved


async def _full(reader: asyncio.StreamReader, path: Path) -> Saved:
    path.write_bytes(await reader.read(1 << 16))
    raise OSError(errno.ENOSPC, "No space left on device")


SAVE = through_file.save


async def test_whatever_goes_wrong_with_the_file_the_guest_goes_on_at_home(
    world, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed on the way, seen by its checksum, or else by QEMU; or the disk fills up."""
    guest = await world.born()
    path = world.folder / "kept"
    for name, fault, word in (
        ("save", _damaged, "are not the"),
        ("save", _damaged_unseen, "the destination"),
        ("_write", _full, "No space left on device"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(through_file, name, fault)
            with pytest.raises(RolledBackError, match=word):
                await world.hosts.move("g", "Penryn", Options(through=path))
        assert not path.exists(), word
        await world.one_runs(guest)
    path.write_bytes(b"somebody's")
    with pytest.raises(InputError, match="is there already"):
        await world.hosts.move("g", "Penryn", Options(through=path))
    assert path.read_bytes() == b"somebody's"
    await world.one_runs(guest)


async def test_the_mover_is_killed_at_any_point(world) -> None:
    guest = await world.born()
    for point in ("moving", "switched", "starting", "verifying", "committing"):
        here = world.store.read("g").host
        goal = "Penryn" if here == "phenom" else "phenom"
        killed_at(point, world.folder, goal)
        done = status(world.folder)
        assert done.returncode == 0, done.stderr
        assert unfinished(world.store) == [], (point, done.stdout, done.stderr)
        assert not (world.folder / "kept").exists(), point
        await world.one_runs(guest)
        forward = point in {"starting", "verifying", "committing"}
        assert world.store.read("g").host == (goal if forward else here), point
