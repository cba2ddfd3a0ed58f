"""A translated guest that becomes another one: reboot, kexec, a vCPU more, a module more.

The CPU lacks what the guest's program executes all the time, so a translator that does not find
the new kernel's #UD entry is seen at once: the program dies by SIGILL, and the kernel with it.
"""

import asyncio
import contextlib
import subprocess
import time
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import LaunchSpec, launch
from isthmus.places import cache_folder
from isthmus.qualification.lab.headers import kernel_module
from isthmus.qualification.lab.image import build_image
from isthmus.qualification.lab.initramfs import archive, file, folder
from isthmus.translate.service import spawn

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
LACKING = "phenom,-sse4a,-popcnt,-3dnow,-3dnowext,-rdtscp"
WORDS = "console=ttyS0 loglevel=1 panic=-1"
PATIENCE_S = 270


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("lives") / "init"
    subprocess.run(
        ["gcc", "-O1", "-msse4a", "-static", "-o", path, HERE / "lives_on.c"], check=True
    )
    return path.read_bytes()


@contextlib.asynccontextmanager
async def guest(program, directory, word, *more):
    """A guest with the program as its first process, translated from before it begins on."""
    entries = [folder("proc"), folder("sys"), folder("dev"), file("init", program, executable=True)]
    (directory / "initrd").write_bytes(archive([*entries, *more]))
    qemu = find_qemu()
    spec = LaunchSpec(
        qemu=qemu.path,
        accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(qemu),
        cpu=LACKING,
        vcpus=1,
        memory_mib=256,
        kernel=build_image(cache=cache_folder()).kernel,
        initrd=directory / "initrd",
        command_line=f"{WORDS} lives={word}",
    )
    arguments = spec.arguments(directory, incoming=False)
    arguments[arguments.index("-smp") + 1] = "1,maxcpus=2"
    arguments[arguments.index("-action") + 1] = "reboot=reset,shutdown=pause,panic=pause"
    process = await launch(arguments, directory, lives_with_parent=True)
    try:
        await said(process, "lives ready")
        client = await spawn(process.gdb, directory)
        await client.arm()
        await client.resume()
        async with Monitor.session(process.observe) as monitor:
            yield process, client, monitor
        await client.close()
    finally:
        process.kill()


def heard(process):
    path = process.console
    return path.read_text(errors="replace") if path.exists() else ""


async def said(process, text, times=1):
    """Wait until the console has said that so often, and nothing that must not be."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        console = heard(process)
        assert "wrong" not in console
        if console.count(text) >= times:
            return
        assert time.monotonic() < deadline, console[-2000:]
        await asyncio.sleep(0.02)


async def goes_on(process, client, where):
    """The program does its work, by translation."""
    done = (await client.status()).translated.get("EXTRQ", 0)
    seen = heard(process).count(f"lives {where} ok")
    await said(process, f"lives {where} ok", seen + 5)
    status = await client.status()
    assert (status.armed, status.running, status.problem) == (True, True, "")
    assert status.translated["EXTRQ"] >= done + 4


async def test_a_reboot_by_the_guest_itself(program, tmp_path_factory):
    async with guest(program, tmp_path_factory.mktemp("r"), "reboot") as (process, client, _):
        for boots in (1, 2, 3):
            await said(process, "lives ready", boots)
            await said(process, "lives here ok", 10 * boots)
        assert (await client.status()).translated["EXTRQ"] >= 30


async def test_a_reset_by_the_operator(program, tmp_path_factory):
    """In the middle of traps, too: nothing waits for the guest."""
    async with guest(program, tmp_path_factory.mktemp("s"), "wait") as (process, client, monitor):
        await goes_on(process, client, "on")
        await monitor.execute("system_reset")
        await said(process, "lives ready", 2)
        await goes_on(process, client, "on")


async def test_another_kernel_by_kexec(program, tmp_path_factory):
    kernel = build_image(cache=cache_folder()).kernel.read_bytes()
    after = archive([folder("proc"), folder("sys"), folder("dev"),
                     file("init", program, executable=True)])  # fmt: skip
    files = (file("vmlinuz", kernel), file("next", after))
    directory = tmp_path_factory.mktemp("k")
    async with guest(program, directory, "kexec", *files) as (process, client, _):
        await said(process, "lives ready", 2)
        await goes_on(process, client, "on")


async def plug(monitor):
    (free,) = [one for one in await monitor.execute("query-hotpluggable-cpus")
               if "qom-path" not in one]  # fmt: skip
    await monitor.execute("device_add", {"driver": free["type"], "id": "more", **free["props"]})


async def test_a_vcpu_that_is_plugged_in_while_held_is_served_from_its_start(
    program, tmp_path_factory
):
    async with guest(program, tmp_path_factory.mktemp("p"), "plug") as (process, client, monitor):
        await client.hold()
        await plug(monitor)
        await client.resume()
        await said(process, "lives plugged ok")
        await goes_on(process, client, "plugged")


async def test_a_vcpu_that_is_plugged_in_is_served_before_long(program, tmp_path_factory):
    """It is found by a look: the program, here, starts it only after a while."""
    directory = tmp_path_factory.mktemp("l")
    async with guest(program, directory, "plug-late") as (process, client, monitor):
        await plug(monitor)
        await said(process, "lives plugged ok")
        await goes_on(process, client, "plugged")


async def test_a_module_that_is_loaded(program, tmp_path_factory):
    release = build_image(cache=cache_folder()).release
    sources = {
        "lives.c": (HERE / "lives_module.c").read_bytes(),
        "Kbuild": b"obj-m := lives.o\nccflags-y := -mpopcnt\n",
    }
    try:
        module = kernel_module(release, sources, "lives", cache=cache_folder())
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("m")
    async with guest(program, directory, "module", file("lives.ko", module)) as (
        process, client, _,
    ):  # fmt: skip
        await said(process, "lives module ok")
        assert (await client.status()).translated["RDTSCP"] >= 1
        await goes_on(process, client, "on")
