"""`isthmus migrate --watch` stays with a guest: one lives, one dies late and is told of."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab_guests import hosts_of_a_test, ticks

from isthmus.baseline.level import level
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import start_bare
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.vigil import MonitorEyes, read_watch
from isthmus.migration.watching import Memory, Outlook, step
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image, command_line

pytestmark = [pytest.mark.lab, pytest.mark.timeout(280)]

PATIENCE_S = 200


class World:
    """A levelled guest ``g`` on phenom, and the command line that knows it."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder

    async def isthmus(self, *words: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from isthmus.cli.main import main; main()", *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "ISTHMUS_STATE": str(self.folder / "state"),
                "ISTHMUS_RUN": str(self.folder / "run"),
            },
        )  # fmt: skip


@pytest.fixture
async def world() -> AsyncIterator[World]:
    image = await asyncio.to_thread(build_image, cache=cache_folder())
    async with hosts_of_a_test() as (hosts, folder):
        pool = level([hosts.offered("phenom"), hosts.offered("Penryn")])
        machine = Machine(
            kernel=image.kernel,
            initrd=image.initrd,
            # So that the test has a way to make its kernel panic, at any time it likes.
            command_line=f"{command_line()} unknown_nmi_panic",
        )
        await hosts.start("g", "phenom", machine, shown=pool.model)
        await ticks(hosts, 2)
        yield World(hosts, folder)


async def said(stream: asyncio.StreamReader, words: bytes) -> bytes:
    """Read lines until one has the words."""
    lines = b""
    async with asyncio.timeout(PATIENCE_S):
        while words not in lines:
            line = await stream.readline()
            assert line, lines.decode()
            lines += line
    return lines


async def test_a_guest_that_lives_and_one_that_dies_late(world: World) -> None:
    there = await world.isthmus("migrate", "g", "--to", "Penryn", "--watch", "3s")
    out, errors = await asyncio.wait_for(there.communicate(), PATIENCE_S)
    assert there.returncode == 0, errors.decode()
    assert b"g lives after" in out
    records = world.folder / "state" / "migrations"
    (first,) = records.glob("*.watch.json")
    assert read_watch(first).outlook is Outlook.LIVES

    back = await world.isthmus("migrate", "g", "--to", "phenom", "--watch", "30m")
    assert back.stdout is not None and back.stderr is not None
    await said(back.stderr, b"watching for 30 min")
    # The watch has the guest's other monitor; a panic stops it with its console written.
    async with Monitor.session(world.hosts.store.read("g").process.qmp) as monitor:
        await monitor.execute("inject-nmi")
    out, errors = await asyncio.wait_for(back.communicate(), PATIENCE_S)
    assert back.returncode == 1, (out, errors)
    assert b"died under watch" in errors and b"Traceback" not in errors
    (second,) = set(records.glob("*.watch.json")) - {first}
    record = read_watch(second)
    assert record.outlook is Outlook.DIED
    assert "NMI" in record.reason
    assert any("Kernel panic" in line for line in record.console)
    assert record.advice


async def test_a_qemu_known_by_its_socket_is_watched_to_its_end() -> None:
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        qemu = await start_bare(find_qemu(), Accelerator.TCG, Path(name))
        try:
            async with MonitorEyes(qemu.qmp) as eyes:
                sample, events = await eyes.look()
                assert sample.state == "prelaunch" and len(sample.vcpus) == 1 and not events
                async with asyncio.timeout(PATIENCE_S):
                    verdict = step(Memory(), sample)[1]
                    assert verdict.outlook is Outlook.HELD
                    qemu.identity.kill()
                    while not verdict.final:
                        verdict = step(Memory(), *await eyes.look())[1]
                assert verdict.outlook is Outlook.DIED, "nobody has told it to go"
        finally:
            await asyncio.to_thread(qemu.kill)
