"""QEMUs that Isthmus did not start, named by their QMP sockets, moved by the command line."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
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
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


async def killed_while_it_verifies(
    folder: Path, here: process.QemuProcess, there: process.QemuProcess
) -> None:
    """Start a move and kill it when the guest runs at its destination."""
    words = ["--qmp", here.qmp, "--to-qmp", there.qmp, "--verify", "600"]
    mover = subprocess.Popen(
        [sys.executable, "-c", "from isthmus.cli.main import main; main()", "migrate", *words],
        env=environment(folder),
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(180):
            while not any(
                b"verifying" in journal.read_bytes()
                for journal in (folder / "state/migrations").glob("*.journal")
            ):
                await asyncio.sleep(0.05)
    finally:
        mover.kill()
        mover.wait()


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"ISTHMUS_STATE": str(folder / "state"), "ISTHMUS_RUN": str(folder / "run")}


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


async def test_a_guest_that_somebody_has_paused_is_left_as_it_is(folder: Path) -> None:
    """It cannot be moved, and the attempt must not let it run."""
    here, there = await pair(folder, "kvm64")
    async with Monitor.session(here.observe) as monitor:
        await monitor.execute("stop")
    done = migrate(folder, "--qmp", here.qmp, "--to-qmp", there.qmp)
    assert done.returncode == 4
    assert "is paused" in done.stderr
    assert "was not touched" in done.stderr
    assert await state(here) == "paused"


async def test_a_source_whose_guest_runs_elsewhere_is_not_let_run_by_a_second_move(
    folder: Path,
) -> None:
    """The mover is killed when the destination runs; somebody tries again by another monitor."""
    here, there = await pair(folder, "kvm64")
    await killed_while_it_verifies(folder, here, there)
    assert (await state(here), await state(there)) == ("postmigrate", "running")
    again = migrate(folder, "--qmp", here.observe, "--to-qmp", there.observe)
    assert again.returncode == 1
    assert "cut short" in again.stderr
    assert (await state(here), await state(there)) == ("postmigrate", "running")
    settled = migrate(folder, "--resume")
    assert settled.returncode == 0, settled.stderr
    assert not here.alive()
    assert await state(there) == "running"


async def test_a_guest_that_has_a_name_here_is_moved_by_it(folder: Path) -> None:
    here, there = await pair(folder, "kvm64")
    store = GuestStore(folder / "state", folder / "run")
    shown = CpuModel(
        name="kvm64", source="test", vendor="GenuineIntel", family=15, model=6, stepping=1
    )
    spec = process.LaunchSpec(
        qemu=Path("/bin/qemu"), accelerator=Accelerator.TCG, machine="pc", cpu="kvm64", vcpus=1,
        memory_mib=256, kernel=Path("k"), initrd=Path("i"), command_line="",
    )  # fmt: skip
    store.write(Guest(name="web", spec=spec, host="kvm64", shown=shown, process=here))
    done = migrate(folder, "--qmp", here.observe, "--to-qmp", there.qmp)
    assert done.returncode == 3
    assert "isthmus migrate web --to" in done.stderr
    assert await state(here) == "running"


@pytest.mark.slow  # two monitors are given 30 s each
async def test_a_destination_that_hangs_does_not_hang_the_roll_back(folder: Path) -> None:
    """It is known by its socket only, so nobody can end it: both are held, in minutes."""
    here, there = await pair(folder, "kvm64")
    await killed_while_it_verifies(folder, here, there)
    os.kill(there.identity.pid, signal.SIGSTOP)
    try:
        begun = time.monotonic()
        words = ("--resume", "--use", "source")
        done = await asyncio.to_thread(migrate, folder, *words)
        assert done.returncode == 1, done.stderr
        assert "does not end" in done.stderr
        assert time.monotonic() - begun < 280
    finally:
        os.kill(there.identity.pid, signal.SIGCONT)
    assert await state(here) == "postmigrate"
