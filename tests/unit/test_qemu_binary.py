"""A QEMU that is none, or that does not answer, is one clear error."""

from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu import binary
from isthmus.hypervisor.qemu.binary import QemuBinary, find_qemu, versioned_pc_machine


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exec sleep 600", "no answer within"),
        ("echo hello", "does not answer like QEMU"),
        ("printf '\\377'", "cannot be run"),
    ],
)
def test_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    if "sleep" in script:
        monkeypatch.setattr(binary, "ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(EnvironmentLackError, match=told):
        find_qemu(str(program))
    if "hello" not in script:
        with pytest.raises(EnvironmentLackError, match=told):
            versioned_pc_machine(QemuBinary(path=program, version=(7, 2, 0)))


def test_it_is_no_program() -> None:
    with pytest.raises(EnvironmentLackError, match="no such program"):
        find_qemu("qemu-of-nobody")
