"""The guest image on emulated hosts: it boots, its payload reports, and a plain QMP migration does
to it what it does to every guest: nothing on the same CPU, death on one that lacks instructions."""

import asyncio
import contextlib
import time

import pytest
from msgspec.structs import replace

from isthmus.hypervisor.qemu import stream
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import LaunchSpec, start
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.report import Follower
from isthmus.qualification.payload.verdict import judge

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATIENCE_S = 180


@pytest.fixture(scope="module")
def image():
    return build_image(cache=cache_folder())


@pytest.fixture
def run(tmp_path_factory):
    """Short, since a UNIX socket's path is limited."""
    return tmp_path_factory.mktemp("g")


def spec(image, cpu, *, vcpus=1, **options):
    qemu = find_qemu()
    return LaunchSpec(
        qemu=qemu.path,
        accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(qemu),
        cpu=cpu,
        vcpus=vcpus,
        memory_mib=256,
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=command_line(options),
    )


@contextlib.asynccontextmanager
async def guest(spec, directory, *, incoming=False):
    process = await start(spec, directory, incoming=incoming, lives_with_parent=True)
    follower = Follower(process.payload)
    following = asyncio.create_task(follower.follow())
    try:
        yield process, follower
    finally:
        following.cancel()
        process.kill()
        while follower.poll():
            pass


async def until(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.02)


def ticks(follower):
    return follower.data.count(b" tick ")


async def state(monitor, command, wanted):
    deadline = time.monotonic() + PATIENCE_S
    while (found := (await monitor.execute(command))["status"]) not in wanted:
        assert found != "failed"
        assert time.monotonic() < deadline, f"{command} says {found}"
        await asyncio.sleep(0.01)


async def move(source, destination, directory):
    """As the engine sends it: what plain QMP does may lose a write under TCG (docs/demo.md)."""
    address = f"unix:{directory / 'migrate.sock'}"
    async with Monitor.session(source.qmp) as there, Monitor.session(destination.qmp) as here:
        await stream.listen(here, address)
        await stream.prepare_source(there, downtime_limit_ms=0)
        await stream.send(there, address, still=True)
        await state(here, "query-status", {"paused"})
        await here.execute("cont")


@pytest.mark.parametrize(
    ("cpu", "vcpus", "tests"),
    [
        ("phenom", 2, {"extrq", "extrqi", "insertq", "insertqi", "movntsd", "movntss", "rdtscp",
                       "lzcnt", "popcnt", "pfadd", "pswapd", "cmpxchg16b"}),
        ("Penryn", 1, {"pshufb", "pmulld", "haddps"}),
        ("EPYC", 1, {"extrq", "rdtscp", "crc32", "movbe", "aesenc", "vpaddd", "vfmadd", "pdep"}),
    ],
)  # fmt: skip
async def test_boots_and_computes(image, run, cpu, vcpus, tests):
    async with guest(spec(image, cpu, vcpus=vcpus), run) as (process, follower):
        await until(lambda: ticks(follower) >= 11, f"ticks on {cpu}")
    verdict = judge([follower.data])
    assert verdict.ok, verdict.faults
    assert tests <= set(verdict.instructions)
    assert ("extrq" in verdict.instructions) == (cpu != "Penryn")
    assert verdict.kernel == image.release
    assert b"isthmus: guest is up" in process.console.read_bytes()


async def test_moves_to_the_same_cpu(image, run, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    options = replace(
        spec(image, "phenom", vcpus=2),
        disk=disk,
        command_line=command_line(disk=True, watch="spin"),
    )
    async with guest(options, run / "a") as (source, before):
        await until(lambda: ticks(before) >= 8, "ticks before the move")
        async with guest(options, run / "b", incoming=True) as (destination, after):
            await move(source, destination, run)
            await until(lambda: ticks(after) >= 11, "ticks after the move")
    verdict = judge([before.stream, after.stream])
    assert verdict.ok, verdict.faults
    assert verdict.clocksource == "tsc"
    assert disk.read_bytes().startswith(b"isthmus-payload\0")
    (hop,) = verdict.hops
    assert hop.guest_gap_ms is not None
    assert hop.silence_ms is not None
    assert 0 < hop.guest_gap_ms < 60_000
    assert 0 < hop.silence_ms < 60_000
    # The same stream with one byte less is not right any more.
    assert not judge([before.data[:-1], after.data]).ok


async def test_old_pair_kernel_panics_on_rdtscp(image, run):
    async with guest(spec(image, "phenom"), run / "a") as (source, before):
        await until(lambda: ticks(before) >= 3, "ticks before the move")
        async with guest(spec(image, "Penryn"), run / "b", incoming=True) as (destination, after):
            await move(source, destination, run)
            await until(
                lambda: (
                    b"end Kernel panic" in destination.console.read_bytes()
                    or b"Kernel Offset" in destination.console.read_bytes()
                ),
                "panic",
            )
    console = destination.console.read_text(errors="replace")
    assert "invalid opcode: 0000" in console
    assert "read_tsc" in console
    assert "<0f> 01 f9" in console  # RDTSCP
    assert not judge([before.data, after.data]).ok


async def test_modern_pair_payload_dies_on_extrq(image, run):
    async with guest(spec(image, "EPYC"), run / "a") as (source, before):
        await until(lambda: ticks(before) >= 3, "ticks before the move")
        target = spec(image, "Skylake-Server")
        async with guest(target, run / "b", incoming=True) as (destination, after):
            await move(source, destination, run)
            await until(lambda: b" death " in after.data, "death of the payload")
            await until(
                lambda: b"trap invalid opcode" in destination.console.read_bytes(),
                "what the kernel has to say of it",
            )
    console = destination.console.read_text(errors="replace")
    assert "trap invalid opcode" in console
    assert "<66> 0f 79 c1" in console  # EXTRQ
    assert "Kernel panic" not in console
    faults = judge([before.data, after.data]).faults
    assert [fault.kind for fault in faults] == ["death"], faults
    assert "signal=4" in faults[0].detail


async def test_missing_instruction_can_be_an_event_instead(image, run):
    options = {"fault": "report"}
    async with guest(spec(image, "EPYC", **options), run / "a") as (source, before):
        await until(lambda: ticks(before) >= 3, "ticks before the move")
        target = spec(image, "Skylake-Server", **options)
        async with guest(target, run / "b", incoming=True) as (destination, after):
            await move(source, destination, run)
            await until(lambda: ticks(after) >= 5, "ticks after the move")
    faults = judge([before.data, after.data]).faults
    signals = [fault for fault in faults if fault.kind == "signal"]
    assert {word for fault in signals for word in fault.detail.split() if "test=" in word} == {
        f"test={name}" for name in ("extrq", "extrqi", "insertq", "insertqi", "movntsd", "movntss")
    }
    # CPUID shows the destination's own values: its vendor is another, of course.
    assert {fault.kind for fault in faults} == {"signal", "cpuid"}
