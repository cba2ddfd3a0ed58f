"""Real processes for the fault tests: hosts, guests, and what is asked after each fault."""

import asyncio
import tempfile
from pathlib import Path

import pytest

from isthmus.baseline.level import level
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.migration.hosts import Hosts, Machine
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import judge

SOURCE, DESTINATION = "phenom", "Penryn"
TESTS = "rdtscp,sse4a,popcnt,lahf-lm,cx16"


class World:
    """One folder of guests on two hosts."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.store = hosts.store
        self.folder = folder

    async def born(
        self, name: str = "g", *, disk: Path | None = None, levelled: bool = True
    ) -> Guest:
        """A guest that has begun to tick; unlevelled, it tests only what can be translated."""
        image = build_image(cache=cache_folder())
        machine = Machine(
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=command_line(
                {"disk": int(disk is not None), "test": "all" if levelled else TESTS}
            ),
            disk=disk,
        )
        pool = [self.hosts.cpus.offered(host) for host in (SOURCE, DESTINATION)]
        shown = level(pool).model if levelled else None
        guest = await self.hosts.start(name, SOURCE, machine, shown=shown)
        await self.ticks(guest, 3)
        return guest

    async def ticks(self, guest: Guest, more: int) -> None:
        """Wait until the guest's payload has ticked ``more`` times from now on."""
        path = self.store.read(guest.name).process.payload
        wanted = path.read_bytes().count(b" tick ") + more
        async with asyncio.timeout(180):
            while path.read_bytes().count(b" tick ") < wanted:
                await asyncio.sleep(0.05)

    async def running(self, name: str = "g") -> list[Path]:
        """The folders of the guest's processes that execute it right now."""
        found = []
        for folder in sorted((self.store.run / name).iterdir()):
            if process.find(folder) is None:
                continue
            async with Monitor.session(folder / "observe.sock") as monitor:
                if await monitor.status() in {"running", "debug"}:
                    found.append(folder)
        return found

    async def one_runs(self, guest: Guest, **judging: object) -> None:
        """Exactly one copy runs, it is the one in the guest's file, and no report is amiss."""
        now = self.store.read(guest.name)
        assert await self.running(guest.name) == [now.process.directory]
        await self.ticks(now, 3)
        verdict = judge([path.read_bytes() for path in now.streams], **judging)
        assert verdict.ok, verdict.faults


@pytest.fixture
async def world():
    """A fresh world; every process of it is killed at the end."""
    qemu = find_qemu()
    with tempfile.TemporaryDirectory(prefix="if-") as name:
        folder = Path(name)
        store = GuestStore(folder / "state", folder / "run")
        cpus = await read_cpus(qemu, Accelerator.TCG)
        try:
            yield World(Hosts(qemu, Accelerator.TCG, cpus, store), folder)
        finally:
            for left in process.mentioning(folder):
                left.kill()
