"""What a Linux guest believes of its CPU's flaws, asked of real guests: the table of
:mod:`isthmus.divergence.security` must foretell it for CPUs of both makers."""

import asyncio
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.security import Vulnerability, believes, exposed, vulnerabilities
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.qemu.process import LaunchSpec, start
from isthmus.places import cache_folder
from isthmus.qualification.lab.image import GuestImage, build_image
from isthmus.qualification.lab.initramfs import archive, file, folder

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

PATIENCE_S = 180
CPUS = (
    "phenom", "Dhyana", "EPYC", "EPYC-Milan", "Penryn", "Haswell-noTSX", "Skylake-Server",
    "Cooperlake", "Icelake-Server", "Snowridge",
)  # fmt: skip
INIT = b"""#!/bin/busybox sh
/bin/busybox mkdir /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
cd /sys/devices/system/cpu/vulnerabilities
for flaw in *; do echo "flaw $flaw: $(/bin/busybox cat $flaw)"; done
/bin/busybox grep -m1 ^bugs /proc/cpuinfo
/bin/busybox uname -r
echo all told
/bin/busybox sleep 1000
"""


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return build_image(cache=cache_folder())


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox")
    path = tmp_path_factory.mktemp("initrd") / "initrd"
    program = file("bin/busybox", Path(busybox).read_bytes(), executable=True)
    path.write_bytes(archive([folder("bin"), program, file("init", INIT, executable=True)]))
    return path


@pytest.fixture(scope="module")
def cpus() -> QemuCpus:
    return asyncio.run(read_cpus(find_qemu(), Accelerator.TCG, CPUS))


async def told(image: GuestImage, initrd: Path, cpu: str, words: str, run: Path) -> str:
    """The console of a guest that tells what it believes."""
    qemu = find_qemu()
    spec = LaunchSpec(
        qemu=qemu.path,
        accelerator=Accelerator.TCG,
        machine=versioned_pc_machine(qemu),
        cpu=cpu,
        vcpus=1,
        memory_mib=256,
        kernel=image.kernel,
        initrd=initrd,
        command_line=f"console=ttyS0 quiet panic=-1 {words}",
    )
    process = await start(spec, run, lives_with_parent=True)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "all told" not in (text := process.console.read_text(errors="replace")):
            assert time.monotonic() < deadline, text[-500:]
            await asyncio.sleep(0.05)
    finally:
        process.kill()
    return text


def evidence(console: str, shown: CpuModel, words: str = "") -> GuestEvidence:
    verdicts = dict(re.findall(r"^flaw (\w+): (.+?)\r?$", console, re.MULTILINE))
    bugs = re.search(r"^bugs\s*:(.*)$", console, re.MULTILINE)
    kernel = re.search(r"^(\d+\.\d+\.\S+)\r?$", console, re.MULTILINE)
    assert verdicts
    assert bugs
    assert kernel
    return GuestEvidence(
        shown=shown,
        kernel=re.sub(r"^(\d+\.\d+)\.0-.*", r"\1.192", kernel[1]),
        command_line=words,
        vulnerabilities=verdicts,
        bugs=frozenset(bugs[1].split()),
    )


def flaws_of(file: str) -> Iterator[Vulnerability]:
    return (flaw for flaw in vulnerabilities().values() if flaw.file == file)


@pytest.mark.parametrize("cpu", CPUS)
async def test_what_a_guest_believes_is_foretold(
    cpu: str, image: GuestImage, initrd: Path, cpus: QemuCpus, tmp_path: Path
) -> None:
    shown = cpus.offered(cpu)
    seen = evidence(await told(image, initrd, cpu, "", tmp_path), shown)
    blind = GuestEvidence(shown=shown, kernel=seen.kernel)
    assert seen.vulnerabilities.keys() <= {flaw.file for flaw in vulnerabilities().values()}
    for name, verdict in seen.vulnerabilities.items():
        if verdict.startswith("Unknown") or name == "vmscape":
            continue
        foretold = any(believes(flaw, blind) for flaw in flaws_of(name))
        assert foretold is not verdict.startswith("Not affected"), f"{name}: {verdict}"
    for flaw in vulnerabilities().values():
        if flaw.scope != "host" and flaw.bug and believes(flaw, blind):
            assert flaw.bug in (seen.bugs or ()), flaw.id


async def test_an_amd_guest_is_open_on_intel_until_it_is_told(
    image: GuestImage, initrd: Path, cpus: QemuCpus, tmp_path: Path
) -> None:
    """pti=on gives a guest with AMD's identity what Intel's CPUs need, and it says so itself."""
    destination, shown = cpus.offered("Skylake-Server"), cpus.offered("EPYC")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = evidence(await told(image, initrd, "EPYC", "", tmp_path / "a"), shown)
    assert exposed("meltdown", plain, destination)
    words = "pti=on indirect_target_selection=force"
    console = await told(image, initrd, "EPYC", words, tmp_path / "b")
    forced = evidence(console, shown, words)
    assert not exposed("meltdown", forced, destination)
    assert not exposed("indirect_target_selection", forced, destination)
    assert "Aligned branch/return thunks" in forced.vulnerabilities["indirect_target_selection"]
