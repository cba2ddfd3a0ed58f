"""The installed QEMU shows exactly the CPU that a rendered argument asks for, bit by bit."""

from pathlib import Path

import pytest

from isthmus.baseline.level import level
from isthmus.baseline.shown import shown_on
from isthmus.cpu.decode import REPEATED
from isthmus.cpu.features import FEATURES, by_cpuid
from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import launch, private_directory
from isthmus.hypervisor.qemu.render import cpu_argument

pytestmark = pytest.mark.lab

PAIRS = [
    ("phenom", "Penryn"),
    ("EPYC", "Skylake-Server"),
    ("Opteron_G5", "Haswell"),
    ("EPYC-Milan", "Icelake-Server"),
    ("Nehalem", "Opteron_G3"),
    ("EPYC-Rome", "Cascadelake-Server"),
    ("EPYC", "Opteron_G1"),
]

# x86_cpu_expand_features enables XSAVE's components by itself: no features of ours.
XCR0_LEAF = (0xD, 0)


async def cpu_object(cpu: str, directory: Path) -> dict[str, object]:
    """What a QEMU started with ``cpu``, stopped before its first instruction, says it shows."""
    private_directory(directory)
    process = await launch(
        [str(find_qemu().path), "-no-user-config", "-nodefaults", "-display", "none", "-S",
         "-machine", "pc", "-accel", "tcg", "-m", "16", "-cpu", cpu,
         "-qmp", f"unix:{directory / 'qmp.sock'},server=on,wait=off"],
        directory, lives_with_parent=True,
    )  # fmt: skip
    try:
        async with Monitor.session(process.qmp) as monitor:
            path = (await monitor.execute("query-cpus-fast"))[0]["qom-path"]
            return {
                name: await monitor.execute("qom-get", {"path": path, "property": name})
                for name in ("feature-words", "vendor", "family", "model", "stepping", "model-id",
                             "level", "xlevel")
            }  # fmt: skip
    finally:
        process.kill()


def shown_features(words: object) -> frozenset[str]:
    assert isinstance(words, list)
    bits = {
        (word["cpuid-input-eax"], word.get("cpuid-input-ecx", 0), word["cpuid-register"].lower()):
        word["features"]
        for word in words
    }  # fmt: skip
    extended = bits[0x80000001, 0, "edx"]
    assert extended & REPEATED in {0, bits[1, 0, "edx"] & REPEATED}
    bits[0x80000001, 0, "edx"] = extended & ~REPEATED
    places = by_cpuid()
    return frozenset(
        places.get((*place, bit), f"{place} bit {bit}")
        for place, value in bits.items()
        for bit in range(32)
        if value >> bit & 1 and place[:2] != XCR0_LEAF
    )


async def check(model: CpuModel, cpus: QemuCpus, directory: Path) -> None:
    facts = await cpu_object(cpu_argument(model, cpus.named), directory)
    # feature-words lists CPUID bits only, not those of MSRs
    in_cpuid = {name for name in model.features if FEATURES[name].leaf is not None}
    shown = shown_features(facts["feature-words"])
    assert shown == in_cpuid
    assert (facts["vendor"], facts["family"], facts["model"], facts["stepping"]) == (
        model.vendor, model.family, model.model, model.stepping,
    )  # fmt: skip
    assert (facts["level"], facts["xlevel"]) == (model.level, model.xlevel)
    assert facts["model-id"] == model.brand


@pytest.mark.parametrize(("first", "second"), PAIRS)
async def test_qemu_shows_what_was_asked_for(first: str, second: str, tmp_path: Path) -> None:
    cpus = await read_cpus(find_qemu(), Accelerator.TCG)
    amd, intel = cpus.offered(first), cpus.offered(second)
    await check(level([amd, intel]).model, cpus, tmp_path / "level")
    await check(amd, cpus, tmp_path / "born")
    await check(shown_on(amd, intel), cpus, tmp_path / "there")
    await check(shown_on(intel, amd), cpus, tmp_path / "back")
