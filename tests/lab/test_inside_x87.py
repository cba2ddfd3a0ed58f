"""FISTTP inside the guest's kernel: the module lends the whole x87 state, and writes it back."""

import asyncio
import subprocess
import time
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.process import LaunchSpec, start
from isthmus.places import cache_folder
from isthmus.qualification.lab.headers import inside_module, kernel_module
from isthmus.qualification.lab.image import build_image
from isthmus.qualification.lab.initramfs import archive, file, folder

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATIENCE_S = 180
SOURCE = Path(__file__).with_name("x87_in_the_kernel.c")
NAME = "x87_in_the_kernel"
INIT = """
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    const char *const modules[] = {"/isthmus.ko", "/x87.ko"};
    for (int i = 0; i < 2; i++)
        syscall(SYS_finit_module, open(modules[i], O_RDONLY), "", 0);
    for (;;)
        pause();
}
"""
# The result, the status word, the tags: Intel SDM vol. 2A, FISTTP; vol. 1, 8.1.7 and 8.5.
EXPECTED = [
    "inexact 3 20 ffff",
    "short 5555555555550003 20 ffff",
    "second 5555555500000003 3820 3fff",
    "invalid 8000000000000000 1 ffff",
    "empty 8000000000000000 841 ffff",
    "unmasked 5555555555555555 b881 bfff",
]


def initramfs(home: Path, release: str) -> Path:
    (home / "init.c").write_text(INIT)
    subprocess.run(["gcc", "-O1", "-static", "-o", home / "init", home / "init.c"], check=True)
    sources = {
        "Kbuild": f"obj-m := {NAME}.o\n".encode(),
        f"{NAME}.c": SOURCE.read_bytes(),
    }
    cache = cache_folder()
    path = home / "initrd"
    path.write_bytes(
        archive(
            [
                folder("dev"),
                file("init", (home / "init").read_bytes(), executable=True),
                file("isthmus.ko", inside_module(release, cache=cache)),
                file("x87.ko", kernel_module(release, sources, NAME, cache=cache)),
            ]
        )
    )
    return path


def said(console: Path) -> str:
    """What the guest has said so far; QEMU makes the file when it is ready to."""
    return console.read_text(errors="replace") if console.exists() else ""


async def test_fisttp_does_what_a_cpu_does(tmp_path_factory) -> None:
    home = tmp_path_factory.mktemp("x")
    image = build_image(cache=cache_folder())
    qemu = find_qemu()
    spec = LaunchSpec(
        qemu=qemu.path,
        accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(qemu),
        cpu="Nehalem",
        vcpus=1,
        memory_mib=192,
        kernel=image.kernel,
        initrd=initramfs(home, image.release),
        command_line="console=ttyS0 loglevel=1 panic=-1",
    )
    process = await start(spec, home, lives_with_parent=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "x87 end" not in (text := said(process.console)):
            assert time.monotonic() < deadline, text[-2000:]
            await asyncio.sleep(0.05)
    finally:
        process.kill()
    lines = [line.split("x87 ", 1)[1].strip() for line in text.splitlines() if "x87 " in line]
    assert lines == [*EXPECTED, "end"]
