"""QEMUs that Isthmus did not start, named by their QMP sockets, moved by the command line."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image, command_line
from isthmus.qualification.payload.verdict import judge

pytestmark = pytest.mark.lab


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="is-") as name:
        yield Path(name)
        for left in process.mentioning(Path(name)):
            left.kill()


async def pair(folder: Path, there_cpu: str, *, own_start: bool = False):
    """A ticking guest on kvm64, and a QEMU that waits for it."""
    qemu = find_qemu()
    image = build_image(cache=cache_folder())
    spec = process.LaunchSpec(
        qemu=qemu.path,
        accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(qemu),
        cpu="kvm64",
        vcpus=1,
        memory_mib=256,
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=command_line(),
    )
    here = await process.start(spec, folder / "here")
    there_spec = msgspec.structs.replace(spec, cpu=there_cpu)
    command = there_spec.arguments(folder / "there", incoming=True)
    if own_start:
        command.remove("-S")
    process.private_directory(folder / "there")
    there = await process.launch(command, folder / "there")
    await ticks(here, 3)
    return here, there


async def ticks(running: process.QemuProcess, wanted: int) -> None:
    """Wait until the payload in this process has ticked so often."""
    async with asyncio.timeout(180):
        while running.payload.read_bytes().count(b" tick ") < wanted:
            await asyncio.sleep(0.05)


def migrate(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", "migrate", "--json"]
        + [str(argument) for argument in arguments],
        env=os.environ
        | {"ISTHMUS_STATE": str(folder / "state"), "ISTHMUS_RUN": str(folder / "run")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


async def state(running: process.QemuProcess) -> str:
    async with Monitor.session(running.observe) as monitor:
        return await monitor.status()


@pytest.mark.parametrize("own_start", [False, True])
async def test_moved(folder: Path, own_start: bool) -> None:
    here, there = await pair(folder, "kvm64", own_start=own_start)
    done = migrate(folder, "--qmp", here.qmp, "--to-qmp", there.qmp, "--verify", "2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"][-1]["phase"] == "committed"
    assert not here.alive()
    assert await state(there) == "running"
    await ticks(there, 3)
    verdict = judge([here.payload.read_bytes(), there.payload.read_bytes()])
    assert verdict.ok, verdict.faults


async def test_another_cpu_is_refused(folder: Path) -> None:
    here, there = await pair(folder, "kvm64,-lm")
    done = migrate(folder, "--qmp", here.qmp, "--to-qmp", there.qmp)
    assert done.returncode == 3
    assert "lm" in done.stderr
    assert await state(here) == "running"
    assert await state(there) == "inmigrate"


async def test_a_destination_that_does_not_wait(folder: Path) -> None:
    here, _ = await pair(folder, "kvm64")
    done = migrate(folder, "--qmp", here.qmp, "--to-qmp", here.observe)
    assert done.returncode == 4
    assert "not waiting" in done.stderr
    assert "Traceback" not in done.stderr
    assert await state(here) == "running"


def test_the_translator_by_name_is_refused_not_ignored(folder: Path) -> None:
    done = migrate(folder, "--qmp", folder / "a", "--to-qmp", folder / "b", "--translate")
    assert done.returncode == 3
    assert "cannot be translated" in done.stderr
    assert "--translate" in done.stderr


def test_no_monitor_there(folder: Path) -> None:
    done = migrate(folder, "--qmp", folder / "a", "--to-qmp", folder / "b")
    assert done.returncode == 1
    assert str(folder / "a") in done.stderr
    assert "Traceback" not in done.stderr
