"""What the module in the demo's guest has done, read from the counts on its console."""

from pathlib import Path

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.hypervisor.qemu.process import LaunchSpec, ProcessIdentity, QemuProcess
from isthmus.qualification.demo import work
from isthmus.qualification.demo.work import Work, work_at_home, work_for

SHOWN = CpuModel(name="a", source="test", vendor="AuthenticAMD", family=16, model=2, stepping=3)


def guest(folder: Path, console: str | None, *, module: bool = True) -> Guest:
    """A guest whose console has said that."""
    spec = LaunchSpec(
        qemu=Path("qemu"), accelerator=Accelerator.KVM, machine="pc-i440fx-7.2", cpu="phenom",
        vcpus=1, memory_mib=128, kernel=Path("k"), initrd=Path("i"), command_line="",
    )  # fmt: skip
    if console is not None:
        (folder / "console.log").write_text(console)
    process = QemuProcess(
        identity=ProcessIdentity(pid=1, start_ticks=0), directory=folder, command=()
    )
    return Guest(
        name="g", spec=spec, host="kvm:phenom", shown=SHOWN, process=process, module=module
    )


def said(*counts: int) -> str:
    return "".join(f"counted EXTRQ {count} PFADD 7 passed 3\r\n" for count in counts)


async def test_the_last_count_is_what_has_been_done(tmp_path: Path) -> None:
    assert await work_for(guest(tmp_path, None)) == Work()
    text = "ounted EXTRQ 1\n" + said(2, 5) + "counted EXT"
    assert await work_for(guest(tmp_path, text)) == Work(translated={"EXTRQ": 5, "PFADD": 7})


async def test_without_a_module_and_a_translator_nobody_works(tmp_path: Path) -> None:
    assert await work_for(guest(tmp_path, said(5), module=False)) is None
    assert await work_at_home(guest(tmp_path, None, module=False), patience_s=0) is None


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ((4, 9, 9, 9), Work()),  # the first was read before the move, and printed after it
        ((9, 9, 9, 11), Work(translated={"EXTRQ": 2})),
        ((9, 9), None),
    ],
)
async def test_at_home_only_what_is_more_than_it_brought_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], found: Work | None
) -> None:
    monkeypatch.setattr(work, "POLL_S", 0.01)
    assert await work_at_home(guest(tmp_path, said(*counts)), patience_s=0.05) == found
