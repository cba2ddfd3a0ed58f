"""The mover is killed and, with it, something that its recovery would need."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos import translator_of
from test_mover_dies import killed_at, status

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.migration.hosts import revive_translators, unfinished
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.migration.record import records
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.translate.service import TranslatorClient

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


def newest(world) -> Path:
    """The folder of the process that receives the guest."""
    return max((world.store.run / "g").iterdir(), key=lambda path: path.stat().st_ctime)


async def kill_translator(folder: Path) -> None:
    one = translator_of(folder)
    assert one is not None
    await asyncio.to_thread(one.kill)


def settled(world) -> Phase:
    """What the last migration came to, once an operator has looked."""
    done = status(world.folder)
    assert done.returncode == 0, done.stderr
    assert unfinished(world.store) == [], done.stderr
    return records(world.store.journals)[-1][1].phase


async def served(world) -> bool:
    folder = world.store.read("g").translator
    client = await TranslatorClient.connect(folder)
    try:
        return (await client.status()).problem == ""
    finally:
        await client.close()


async def test_the_translator_dies_with_the_mover(world) -> None:
    guest = await world.born(levelled=False)
    lost = world.hosts.cpus.offered("phenom").features - world.hosts.cpus.offered("Penryn").features
    judging = {"cpuid_may_lose": cpuid_bits(lost)}
    # On the way out, where the guest has been let go already.
    killed_at("verifying", world.folder, "Penryn", translate=True)
    await kill_translator(newest(world))
    assert settled(world) is Phase.COMMITTED
    await world.one_runs(guest, **judging)
    assert await served(world)
    # On the way home, before it was: its source has to take it back, and to serve it.
    killed_at("switched", world.folder, "phenom", translate=True)
    await kill_translator(world.store.read("g").translator)
    assert settled(world) is Phase.ROLLED_BACK
    await world.one_runs(guest, **judging)
    assert await served(world)
    # Before a move: it is moved all the same.
    await kill_translator(world.store.read("g").translator)
    await world.hosts.move("g", "phenom", Options(verify_s=60))
    await world.one_runs(guest, **judging)
    # At home the destination runs: a new translator must not let the source run beside it.
    await world.hosts.move("g", "Penryn", Options(verify_s=60))
    killed_at("verifying", world.folder, "phenom", translate=True)
    await kill_translator(world.store.read("g").translator)
    assert await revive_translators(world.store) == []
    assert await world.running() == [newest(world)]
    assert settled(world) is Phase.COMMITTED
    await world.one_runs(guest, **judging)


async def test_a_translated_guest_is_taken_back_with_its_disk(world) -> None:
    """QEMU has given the disk up by then, and ends at the guest's next write if it runs without."""
    disk = world.folder / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    guest = await world.born(disk=disk, levelled=False)
    lost = world.hosts.cpus.offered("phenom").features - world.hosts.cpus.offered("Penryn").features
    await world.hosts.move("g", "Penryn", Options(verify_s=60))
    killed_at("switched", world.folder, "phenom", translate=True)
    assert settled(world) is Phase.ROLLED_BACK
    await world.one_runs(guest, cpuid_may_lose=cpuid_bits(lost))
    async with Monitor.session(world.store.read("g").process.observe) as monitor:
        before = await written(monitor)
        async with asyncio.timeout(180):
            while await written(monitor) == before:
                await asyncio.sleep(0.1)
    await world.hosts.move("g", "phenom", Options(verify_s=60))
    await world.one_runs(guest, cpuid_may_lose=cpuid_bits(lost))


async def written(monitor: Monitor) -> int:
    devices = await monitor.execute("query-blockstats")
    return sum(device["stats"]["wr_operations"] for device in devices)


async def test_the_destination_dies_while_its_source_is_to_be_ended(world) -> None:
    guest = await world.born()
    killed_at("committing", world.folder, "Penryn")
    gone = process.find(newest(world))
    assert gone is not None
    await asyncio.to_thread(gone.kill)
    assert settled(world) is Phase.ROLLED_BACK
    assert world.store.read("g").host == "phenom"
    await world.one_runs(guest)
    await world.hosts.move("g", "Penryn", Options(verify_s=60))
    await world.one_runs(guest)


def command(world, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", *words],
        env=os.environ
        | {"ISTHMUS_STATE": str(world.store.folder.parent), "ISTHMUS_RUN": str(world.store.run)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow  # what it says of records is in tests/unit/test_decision.py, too
async def test_a_lost_guest_is_told_of_and_its_name_is_free_again(world) -> None:
    guest = await world.born()
    killed_at("moving", world.folder, "Penryn")
    await asyncio.to_thread(guest.process.kill)
    done = status(world.folder)
    assert done.returncode == 0, done.stderr
    assert "lost" in done.stderr
    ((_, record),) = records(world.store.journals)
    assert record.phase is Phase.LOST
    assert "not whole" in record.error
    assert process.mentioning(world.folder) == [], "what was left of the destination is gone"
    assert command(world, "guest", "stop", "g").returncode == 0
    again = await world.born()
    await world.hosts.move("g", "Penryn", Options(verify_s=60))
    await world.one_runs(again)
    # Ended in the middle of a move by the operator, who may then use the name anew.
    killed_at("moving", world.folder, "phenom")
    stopped = command(world, "guest", "stop", "g")
    assert stopped.returncode == 0, stopped.stderr
    assert process.mentioning(world.folder) == []
    assert unfinished(world.store) == []
    assert "operator" in records(world.store.journals)[-1][1].error
    assert not (world.store.run / "g").exists()
