"""The guest ``g`` on hosts that one QEMU plays, with folders and processes of the test's own."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.hosts import Hosts

PATIENCE_S = 180


@contextlib.asynccontextmanager
async def hosts_of_a_test() -> AsyncIterator[tuple[Hosts, Path]]:
    """The hosts and their folder; afterwards no process of theirs is left."""
    qemu = find_qemu()
    with tempfile.TemporaryDirectory(prefix="il-") as name:
        folder = Path(name)
        store = GuestStore(folder / "state", folder / "run")
        cpus = await read_cpus(qemu, Accelerator.TCG)
        try:
            yield Hosts(qemu, Accelerator.TCG, cpus, store), folder
        finally:
            for left in process.mentioning(folder):
                left.kill()


async def ticks(hosts: Hosts, more: int) -> None:
    """Wait until the guest's payload, where it is, has ticked so many times more."""
    path = hosts.store.read("g").process.payload
    wanted = path.read_bytes().count(b" tick ") + more
    async with asyncio.timeout(PATIENCE_S):
        while path.read_bytes().count(b" tick ") < wanted:
            await asyncio.sleep(0.05)
