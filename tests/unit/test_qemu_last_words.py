"""What is told of a QEMU that has ended."""

from pathlib import Path

import pytest

from isthmus.hypervisor.qemu.process import last_words

LENGTHS = "Length mismatch: pc.ram: 0x4000000 in != 0x8000000: Invalid argument"
DEVICE = "error while loading state for instance 0x0 of device 'ram'"
FAILED = "load of migration failed: Invalid argument"
SAYS = "qemu-system-x86_64: "


@pytest.mark.parametrize(
    ("printed", "told"),
    [
        ("", "no message"),
        (f"{SAYS}warning: TCG doesn't support this", "warning: TCG doesn't support this"),
        (f"{SAYS}Could not open x\n{SAYS}warning: y\n\n", "Could not open x"),
        (
            f"{SAYS}warning: y\n{SAYS}{LENGTHS}\n{SAYS}{DEVICE}\n{SAYS}{FAILED}\n",
            f"{LENGTHS}; {DEVICE}; {FAILED}",
        ),
        (f"{SAYS}{FAILED}", FAILED),
    ],
)
def test_the_reason_is_told(tmp_path: Path, printed: str, told: str) -> None:
    log = tmp_path / "qemu.log"
    log.write_text(printed)
    assert last_words(log) == told


def test_no_log_is_no_error(tmp_path: Path) -> None:
    assert last_words(tmp_path / "none") == "no message"
