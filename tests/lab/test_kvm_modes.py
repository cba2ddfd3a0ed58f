"""Guests that stand in every mode of the processor while they are moved, under real KVM."""

import subprocess
import time
from pathlib import Path

import pytest
from kvm_cases import need_lab_hosts, outcome_of

from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases import failure_6_modes as modes
from isthmus.qualification.kvm.cases.bench import Bench
from isthmus.qualification.kvm.cases.case import Case, Part
from isthmus.qualification.kvm.guests import modes_guest

pytestmark = pytest.mark.lab


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", modes.MODES, ids=lambda mode: mode.word)
def test_the_guest_finds_all_right_in_plain_emulation(mode: modes.Mode, tmp_path: Path) -> None:
    """So what is wrong under KVM is not the guest's own doing."""
    boot = modes_guest(cache_folder())
    console = tmp_path / "console"
    qemu = subprocess.Popen(
        [
            find_qemu().path, "-accel", "tcg", "-cpu", "Nehalem", "-m", "32", "-nodefaults",
            "-no-user-config", "-display", "none", "-serial", f"file:{console}",
            "-kernel", boot.kernel, "-initrd", boot.initrd, "-append", mode.word,
        ],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        life = modes.Life()
        while life.lines < 3 and not life.wrong and time.monotonic() < deadline:
            time.sleep(0.1)
            text = console.read_text(encoding="ascii") if console.exists() else ""
            life = modes.read_life(text, mode.word)
    finally:
        qemu.kill()
        qemu.wait()
    assert life.lines >= 3
    assert not life.wrong


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_mode_goes_to_intel_and_back() -> None:
    need_lab_hosts(intel=True)
    assert len(outcome_of(modes.CASE).parts) == len(modes.MODES)


@pytest.mark.timeout(600)
def test_16_bits_go_between_amd_hosts() -> None:
    need_lab_hosts()

    async def run(bench: Bench) -> list[Part]:
        way = ("kvm:phenom", "kvm:opteron2", "kvm:phenom")
        chosen = (mode for mode in modes.MODES if mode.word == "16")
        return [await modes.crossed(bench, mode, way) for mode in chosen]

    outcome_of(Case(6, "modes between AMD hosts", ("phenom", "opteron2"), run))
