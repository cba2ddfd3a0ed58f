"""The trial whether a guest stops at a breakpoint, on the QEMU of this machine."""

from pathlib import Path

import pytest

from isthmus.hypervisor.qemu import breakpoints
from isthmus.hypervisor.qemu.binary import QemuBinary, find_qemu
from isthmus.hypervisor.qemu.breakpoints import try_breakpoint
from isthmus.hypervisor.qemu.engine import Accelerator

pytestmark = pytest.mark.lab


def test_qemus_own_emulation_stops_a_guest() -> None:
    trial = try_breakpoint(find_qemu(), Accelerator.TCG)
    assert trial.works, trial.reason


def test_a_guest_that_runs_past_it_is_told_from_one_that_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here because the breakpoint is where nothing runs; so the guest goes on to its end."""
    monkeypatch.setattr(breakpoints, "_CPUID", bytes.fromhex("f4ebfd"))  # after the answer
    assert not try_breakpoint(find_qemu(), Accelerator.TCG).works


def test_no_qemu_stops_no_guest(tmp_path: Path) -> None:
    none = QemuBinary(path=tmp_path / "none", version=(7, 2, 0))
    assert not try_breakpoint(none, Accelerator.TCG).works
    for words in ("exit 1", "exec sleep 0.3"):
        script = tmp_path / "qemu"
        script.write_text(f"#!/bin/sh\n{words}\n")
        script.chmod(0o700)
        other = QemuBinary(path=script, version=(7, 2, 0))
        assert not try_breakpoint(other, Accelerator.KVM).works
