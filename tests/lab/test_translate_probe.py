"""The same program on a CPU that has the instructions and on one that lacks them, translated.

The oracle is QEMU's own emulation of an AMD CPU: results, flags, faults and their addresses,
copy-on-write, 32-bit code, several vCPUs and #UDs of the guest's own have to come out the same.
"""

import asyncio
import contextlib
import shutil
import subprocess
import time

import pytest

from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import LaunchSpec, start
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import build_image
from isthmus.qualification.lab.initramfs import archive, file, folder
from isthmus.translate.service import spawn

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

LACKING = "phenom,-sse4a,-popcnt,-3dnow,-3dnowext,-rdtscp"
PATIENCE_S = 180


@pytest.fixture(scope="module")
def initrd(tmp_path_factory):
    home = tmp_path_factory.mktemp("probe")
    source = __file__.replace("test_translate_probe.py", "translate_probe.c")
    subprocess.run(
        ["gcc", "-O1", "-static", "-pthread", "-o", home / "init", source], check=True
    )  # fmt: skip
    program = (home / "init").read_bytes()
    path = home / "initrd"
    path.write_bytes(archive([folder("dev"), file("init", program, executable=True)]))
    return path


@contextlib.asynccontextmanager
async def probe(initrd, directory, cpu, *, vcpus, words=""):
    qemu = find_qemu()
    spec = LaunchSpec(
        qemu=qemu.path,
        accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(qemu),
        cpu=cpu,
        vcpus=vcpus,
        memory_mib=192,
        kernel=build_image(cache=cache_folder()).kernel,
        initrd=initrd,
        command_line=f"console=ttyS0 loglevel=0 panic=-1 tsc=reliable clocksource=tsc {words}",
    )
    process = await start(spec, directory, lives_with_parent=True)
    try:
        yield process
    finally:
        process.kill()


async def said(process, word):
    deadline = time.monotonic() + PATIENCE_S
    while f"probe {word}" not in (text := process.console.read_text(errors="replace")):
        assert time.monotonic() < deadline, text[-2000:]
        await asyncio.sleep(0.02)
    return [line for line in text.splitlines() if line.startswith("probe ")]


@pytest.fixture(scope="module")
def native(initrd, tmp_path_factory):
    async def run():
        async with probe(initrd, tmp_path_factory.mktemp("n"), "phenom", vcpus=2) as process:
            return await said(process, "end")

    lines = asyncio.run(run())
    assert len(lines) > 40
    # Eleven instructions are stepped over, three times.
    assert any(line.startswith("probe steps 33 ") for line in lines)
    return lines


@pytest.mark.parametrize(("vcpus", "words"), [(1, "pti=on"), (2, "")])
async def test_does_what_the_cpu_does(initrd, native, tmp_path_factory, vcpus, words):
    directory = tmp_path_factory.mktemp("p")
    async with probe(initrd, directory, LACKING, vcpus=vcpus, words=words) as process:
        await said(process, "ready")
        client = await spawn(process.gdb, directory)
        report = await client.arm()
        await client.resume()
        lines = await said(process, "end")
        status = await client.status()
        assert lines == native
        assert not status.problem
        assert status.faulted >= 8
        assert status.passed >= 6
        assert {"EXTRQ", "INSERTQ", "MOVNTSD", "POPCNT", "RDTSCP", "PFADD", "PMULHRW"} <= set(
            status.translated
        )
        assert report.took_ms < 20_000  # the guest stood for it
        await client.hold()
        async with Monitor.session(process.observe) as monitor:
            assert await monitor.status() == "paused"
            assert "48cf0f6fc0" not in await text_of(monitor, directory, report.entry), "left there"
        await client.close()


async def text_of(monitor, directory, entry):
    """The kernel's entry text as the guest would execute it now, in hexadecimal digits."""
    path = directory / "text"
    command = f'memsave {entry & ~0xFFF:#x} 0x8000 "{path}"'
    await monitor.execute("human-monitor-command", {"command-line": command})
    return path.read_bytes().hex()


def test_has_a_compiler():
    assert shutil.which("gcc"), "script/setup installs it"
