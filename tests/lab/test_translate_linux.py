"""Linux guests that were booted for one maker's CPU live on the other's, by translation."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.models import read_cpus
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.options import Options
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import judge
from isthmus.translate.service import TranslatorClient, spawn

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATIENCE_S = 180
GROUPS = "rdtscp,sse4a,3dnow,3dnowext,popcnt"
ANY_CPUID = {
    (leaf, sub, register): 0xFFFFFFFF
    for leaf in (*range(0x20), *range(0x80000000, 0x80000020))
    for sub in range(8)
    for register in ("eax", "ebx", "ecx", "edx")
}


@pytest.fixture(scope="module")
def image():
    return build_image(cache=cache_folder())


@pytest.fixture
async def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    qemu = find_qemu()
    cpus = await read_cpus(qemu, Accelerator.TCG, {"phenom", "Penryn", "phenom-v1", "Penryn-v1"})
    return Hosts(qemu, Accelerator.TCG, cpus, GuestStore(folder / "state", folder / "run"))


@contextlib.asynccontextmanager
async def guest(hosts, image, *, vcpus=1, extra="", groups=GROUPS):
    machine = Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=command_line({"test": groups}) + extra,
        vcpus=vcpus,
    )
    started = await hosts.start("g", "phenom", machine, lives_with_parent=True)
    try:
        await ticks(started.process.payload, 3)
        yield started
    finally:
        with contextlib.suppress(Exception):
            hosts.store.read("g").process.kill()
        started.process.kill()


def count(path: Path) -> int:
    return path.read_bytes().count(b" tick ") if path.exists() else 0


async def ticks(path, more):
    """Wait until the payload has ticked ``more`` times more."""
    wanted, deadline = count(path) + more, time.monotonic() + PATIENCE_S
    while count(path) < wanted:
        assert time.monotonic() < deadline, path.with_name("console.log").read_text()[-1500:]
        await asyncio.sleep(0.02)


async def stands(path):
    """Wait until the payload ticks no more: without a translator the guest stands at its #UD."""
    deadline = time.monotonic() + PATIENCE_S
    before = -1
    while count(path) != before:
        assert time.monotonic() < deadline, "it goes on without its translator"
        before = count(path)
        await asyncio.sleep(2)


async def there(hosts):
    record = await hosts.move("g", "Penryn", Options(translate=True, lives_with_parent=True))
    return record, hosts.store.read("g")


async def status(abroad):
    client = await TranslatorClient.connect(abroad.translator)
    try:
        return await client.status()
    finally:
        await client.close()


def translator_of(abroad) -> int:
    """The process id of the guest's translator."""
    marks = (b"isthmus.translate.service", os.fsencode(abroad.translator))
    lines = {
        int(entry.name): (entry / "cmdline").read_bytes()
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and (entry / "cmdline").exists()
    }
    (pid,) = [pid for pid, line in lines.items() if all(mark in line for mark in marks)]
    return pid


def verdict(*processes):
    return judge([p.payload.read_bytes() for p in processes], cpuid_may_lose=ANY_CPUID)


@pytest.mark.parametrize(("vcpus", "extra"), [(1, ""), (2, " pti=on"), (1, " mitigations=off")])
async def test_crosses_and_comes_home(hosts, image, vcpus, extra):
    async with guest(hosts, image, vcpus=vcpus, extra=extra) as born:
        _, abroad = await there(hosts)
        await ticks(abroad.process.payload, 8)
        found = await status(abroad)
        assert not found.problem
        assert {"RDTSCP", "EXTRQ", "INSERTQ", "MOVNTSD", "MOVNTSS", "PFADD", "PSWAPD", "FEMMS",
                "POPCNT"} <= set(found.translated)  # fmt: skip
        assert found.passed > 0, "the payload's own UD2 has to reach the guest"
        await hosts.move("g", "phenom", Options(lives_with_parent=True))
        home = hosts.store.read("g")
        await ticks(home.process.payload, 5)
        assert home.translator is None
        judged = verdict(born.process, abroad.process, home.process)
        assert judged.ok, judged.faults
        assert judged.instructions["extrq"] >= 16


async def test_a_killed_translator_is_replaced(hosts, image):
    async with guest(hosts, image) as born:
        _, abroad = await there(hosts)
        await ticks(abroad.process.payload, 2)
        pid = translator_of(abroad)
        os.kill(pid, signal.SIGKILL)
        await stands(abroad.process.payload)
        client = await spawn(abroad.process.gdb, abroad.translator)
        await client.take_over()
        await client.close()
        await ticks(abroad.process.payload, 5)
        judged = verdict(born.process, abroad.process)
        assert judged.ok, judged.faults
