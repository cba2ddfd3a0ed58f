"""The operator's side of translation: arm a guest that runs, watch it, take the translator away."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.hosts import Hosts, Machine
from isthmus.places import cache_folder
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import Verdict, judge

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

TESTS = "sse4a,popcnt"


class World:
    """The guest ``g``, which runs, and the command line that knows it."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder

    async def isthmus(self, *arguments: object, code: int = 0) -> str:
        """Run a command; what it says, on both outputs if it was not to succeed."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", "from isthmus.cli.main import main; main()"]
            + [str(argument) for argument in arguments],
            env=os.environ
            | {
                "ISTHMUS_STATE": str(self.folder / "state"),
                "ISTHMUS_RUN": str(self.folder / "run"),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stdout if not code else done.stdout + done.stderr

    async def status(self) -> dict:
        return json.loads(await self.isthmus("translate", "status", "g", "--json"))

    async def translated(self, more: int) -> dict:
        """The status when so many more instructions have been translated."""
        first = sum((await self.status())["status"]["translated"].values())
        async with asyncio.timeout(60):
            while True:
                status = await self.status()
                if sum(status["status"]["translated"].values()) >= first + more:
                    return status
                await asyncio.sleep(0.1)

    def verdict(self) -> Verdict:
        lost = (
            self.hosts.cpus.offered("phenom").features - self.hosts.cpus.offered("Penryn").features
        )
        streams = [path.read_bytes() for path in self.hosts.store.read("g").streams]
        return judge(streams, cpuid_may_lose=cpuid_bits(lost))

    async def ticks(self, more: int) -> None:
        path = self.hosts.store.read("g").process.payload
        wanted = path.read_bytes().count(b" tick ") + more
        async with asyncio.timeout(60):
            while path.read_bytes().count(b" tick ") < wanted:
                await asyncio.sleep(0.05)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    qemu = find_qemu()
    with tempfile.TemporaryDirectory(prefix="io-") as name:
        folder = Path(name)
        store = GuestStore(folder / "state", folder / "run")
        hosts = Hosts(qemu, Accelerator.TCG, await read_cpus(qemu, Accelerator.TCG), store)
        try:
            image = build_image(cache=cache_folder())
            machine = Machine(
                kernel=image.kernel, initrd=image.initrd, command_line=command_line(test=TESTS)
            )
            await hosts.start("g", "phenom", machine)
            here = World(hosts, folder)
            await here.ticks(2)
            yield here
        finally:
            for left in process.mentioning(folder):
                left.kill()


async def test_a_guest_at_home_is_served_and_left(world: World) -> None:
    assert "no translator is armed" in await world.isthmus("translate", "detach", "g", code=3)
    armed = await world.isthmus("translate", "attach", "g", "--warn-share", "20")
    assert "only its own #UDs" in armed
    again = await world.isthmus("translate", "attach", "g", code=3)
    assert "armed already" in again
    await world.ticks(3)
    status = await world.status()
    # The payload executes UD2 on purpose in every round, and it must get its SIGILL.
    assert status["status"]["passed"] > 0
    assert status["status"]["armed"]
    assert status["translation"] == {
        "placement": "outside", "features": [], "warn_share": 0.2, "level": "isthmus level phenom"
    }  # fmt: skip
    assert status["problem"] == ""
    await world.isthmus("translate", "detach", "g")
    assert (await world.status())["translation"] is None
    await world.ticks(3)
    found = world.verdict()
    assert found.ok, found.faults
