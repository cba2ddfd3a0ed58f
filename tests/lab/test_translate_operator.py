"""The operator's side of translation: arm a guest that runs, watch it, take the translator away."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab_guests import hosts_of_a_test, ticks
from prometheus_client.parser import text_string_to_metric_families

from isthmus.guest.console import find_death
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.record import records
from isthmus.places import cache_folder
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import Verdict, judge

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

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
            timeout=360,
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
        async with asyncio.timeout(180):
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


@pytest.fixture
async def empty() -> AsyncIterator[World]:
    """No guest yet."""
    async with hosts_of_a_test() as (hosts, folder):
        yield World(hosts, folder)


@pytest.fixture
async def world(empty: World) -> World:
    image = build_image(cache=cache_folder())
    machine = Machine(
        kernel=image.kernel, initrd=image.initrd, command_line=command_line(test=TESTS)
    )
    await empty.hosts.start("g", "phenom", machine)
    await ticks(empty.hosts, 2)
    return empty


async def test_what_cannot_be_armed_runs_on(empty: World) -> None:
    """A guest that has never got beyond its firmware: no IDT of 64 bits, no #UD handler."""
    hosts = empty.hosts
    spec = process.LaunchSpec(
        qemu=hosts.qemu.path, accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(hosts.qemu), cpu="phenom", vcpus=1, memory_mib=32,
        kernel=Path("none"), initrd=Path("none"), command_line="", name="g",
    )  # fmt: skip
    folder = hosts.store.hop_folder("g", 0)
    command = spec.arguments(folder, incoming=False)
    running = await process.launch(command[: command.index("-kernel")], folder)
    guest = Guest(
        name="g", spec=spec, host="phenom", shown=hosts.cpus.offered("phenom"), process=running
    )
    hosts.store.write(guest)
    said = await empty.isthmus("translate", "attach", "g", code=1)
    assert "the guest runs on without" in said
    assert hosts.store.read("g") == guest
    async with Monitor.session(running.qmp) as monitor:
        assert await monitor.status() == "running"
        await monitor.execute("stop")
        assert "not running" in await empty.isthmus("translate", "attach", "g", code=3)
    # Of what SandyBridge lacks, F16C needs the upper halves of YMM, which the stub does not show.
    shown = hosts.cpus.offered("IvyBridge")
    shown = shown.replace(features=shown.features - {"fsgsbase", "smep"})
    ivy = guest.replace(host="IvyBridge", shown=shown)
    hosts.store.write(ivy)
    refused = await empty.isthmus("migrate", "g", "--to", "SandyBridge", "--dry-run", code=3)
    assert "f16c" in refused
    assert "with the module in its kernel the guest could move" in refused
    hosts.store.write(ivy.replace(module=True))
    await empty.isthmus("migrate", "g", "--to", "SandyBridge", "--dry-run")
    hosts.store.write(guest.replace(module=True))
    for command in ("attach", "detach"):
        assert "its kernel's module" in await empty.isthmus("translate", command, "g", code=3)
    assert (await empty.status())["translation"]["placement"] == "inside"
    running.kill()
    assert "has ended" in await empty.isthmus("translate", "attach", "g", code=1)
    assert "has ended" in (await empty.status())["problem"]


async def test_a_guest_at_home_is_served_and_left(world: World) -> None:
    assert "no translator is armed" in await world.isthmus("translate", "detach", "g", code=3)
    armed = await world.isthmus("translate", "attach", "g", "--warn-share", "20")
    assert "only its own #UDs" in armed
    again = await world.isthmus("translate", "attach", "g", code=3)
    assert "armed already" in again
    await ticks(world.hosts, 3)
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
    await ticks(world.hosts, 3)
    found = world.verdict()
    assert found.ok, found.faults


async def test_migrate_arms_by_itself_and_the_operator_sees_it(world: World) -> None:
    """Away armed by the findings, taken away and armed again by hand, watched, and home."""
    refused = await world.isthmus("migrate", "g", "--to", "Penryn", "--no-translate", code=3)
    assert "rdtscp" in refused
    dry = await world.isthmus("migrate", "g", "--to", "Penryn", "--dry-run", "--json")
    assert json.loads(dry)["blocking"] == []
    moved = json.loads(
        await world.isthmus("migrate", "g", "--to", "Penryn", "--warn-share", "0.001", "--json")
    )
    planned = moved["plan"]["translation"]
    assert planned["placement"] == "outside"
    assert {"sse4a", "popcnt", "rdtscp"} <= set(planned["features"])
    (journal,) = [record for _, record in records(world.hosts.store.journals)]
    assert list(journal.plan.translation.features) == planned["features"]

    status = await world.translated(20)
    assert status["translation"] == planned
    assert planned["level"] == "isthmus level phenom Penryn"
    counters = status["status"]
    assert "EXTRQ" in counters["translated"]
    assert counters["sites"]
    assert counters["processes"]
    assert counters["stop_us"] > 0
    assert counters["busy_share"] > 0
    assert "reboot the guest levelled: isthmus level phenom Penryn" in status["warning"]
    shown = await world.isthmus("translate", "status", "g")
    assert {"EXTRQ", "sites:", "outside"} <= set(shown.split())
    await symbols_are_of_its_kernel(world, counters["entry"])
    await prometheus_reads_it(world, counters["translated"])

    refused = await world.isthmus("translate", "detach", "g", code=3)
    assert "sse4a" in refused
    await log_warns(world.hosts.store.read("g").translator)
    await killed(world)
    assert "no translator answers" in (await world.status())["problem"]
    assert "isthmus_translate_up" in await world.isthmus("translate", "metrics")
    await world.isthmus("translate", "attach", "g")
    assert (await world.translated(5))["translation"] == planned

    home = json.loads(await world.isthmus("migrate", "g", "--to", "phenom", "--json"))
    assert home["plan"]["translation"] is None
    await ticks(world.hosts, 2)
    assert (await world.status())["translation"] is None
    assert world.hosts.store.read("g").warn_share == 0.00001
    found = world.verdict()
    assert found.ok, found.faults

    # The operator may take it away all the same, and the guest dies of it as was said.
    await world.isthmus("migrate", "g", "--to", "Penryn", "--json")
    await world.isthmus("translate", "detach", "g", "--yes")
    console = world.hosts.store.read("g").process.console
    async with asyncio.timeout(180):
        while find_death(console.read_bytes()) is None:
            await asyncio.sleep(0.1)


async def killed(world: World) -> None:
    """The translator dies; the guest stands still at its next missing instruction."""
    folder = world.hosts.store.read("g").translator
    for service in process.mentioning(folder):
        if b"isthmus.translate.service" in Path(f"/proc/{service.pid}/cmdline").read_bytes():
            service.kill()


async def symbols_are_of_its_kernel(world: World, entry: str) -> None:
    # The guest's own /proc/kallsyms would begin so.
    symbols = world.folder / "kallsyms"
    symbols.write_text(f"{entry[2:]} T asm_exc_invalid_op\n")
    assert "EXTRQ" in await world.isthmus("translate", "status", "g", "--symbols", symbols)
    symbols.write_text("ffffffff81000010 T asm_exc_invalid_op\n")
    said = await world.isthmus("translate", "status", "g", "--symbols", symbols, code=2)
    assert "another kernel" in said


async def prometheus_reads_it(world: World, least: dict[str, int]) -> None:
    """On the standard output, and in a file for node_exporter."""
    path = world.folder / "isthmus.prom"
    await world.isthmus("translate", "metrics", "--textfile", path)
    assert [each.name for each in world.folder.glob("*.prom*")] == ["isthmus.prom"]
    for text in (await world.isthmus("translate", "metrics"), path.read_text()):
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        labels = (("guest", "g"), ("instruction", "EXTRQ"))
        assert samples["isthmus_translated_total", labels] >= least["EXTRQ"]
        assert 0 < samples["isthmus_translate_busy_ratio", (("guest", "g"),)] <= 1
        assert samples["isthmus_undefined_passed_total", (("guest", "g"),)] > 0
        up = (("guest", "g"), ("host", "Penryn"), ("placement", "outside"))
        assert samples["isthmus_translate_up", up] == 1


async def log_warns(folder: Path) -> None:
    """The translator's own log has the warning, too."""
    async with asyncio.timeout(180):
        while "warning: translation takes" not in (folder / "translator.log").read_text():
            await asyncio.sleep(0.2)
    assert "isthmus level phenom Penryn" in (folder / "translator.log").read_text()
