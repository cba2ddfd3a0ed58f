"""What the operator says of the module in a guest's kernel, and when it is not believed."""

import os
from pathlib import Path

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError, RefusedError
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.hypervisor.qemu.process import LaunchSpec, ProcessIdentity, QemuProcess
from isthmus.migration.arming import note_module
from isthmus.translate.placement import Translation
from isthmus.translate.table import Placement

SHOWN = CpuModel(name="a", source="test", vendor="AuthenticAMD", family=16, model=2, stepping=3)
SPEC = LaunchSpec(
    qemu=Path("qemu"), accelerator=Accelerator.TCG, machine="pc-i440fx-7.2", cpu="phenom",
    vcpus=1, memory_mib=128, kernel=Path("k"), initrd=Path("i"), command_line="",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> GuestStore:
    return GuestStore(tmp_path / "state", tmp_path / "run")


def guest(**changes: object) -> Guest:
    """A guest that lives, as this very process."""
    living = QemuProcess(
        identity=ProcessIdentity.of(os.getpid()), directory=Path("/nowhere"), command=()
    )
    fields = {"name": "g", "spec": SPEC, "host": "phenom", "shown": SHOWN, "process": living}
    return Guest(**fields | changes)


def test_it_is_written_down_and_taken_back(store: GuestStore) -> None:
    store.write(guest())
    note_module(store, "g", loaded=True)
    assert store.read("g").module
    note_module(store, "g", loaded=False)
    assert not store.read("g").module


def test_while_the_translator_outside_is_armed_the_module_sees_nothing(store: GuestStore) -> None:
    store.write(guest(translator=Path("/nowhere")))
    with pytest.raises(RefusedError, match="armed outside"):
        note_module(store, "g", loaded=True)
    assert not store.read("g").module


def test_what_the_guest_lives_by_is_not_taken_back(store: GuestStore) -> None:
    translation = Translation(placement=Placement.INSIDE, features=("sse4a",))
    store.write(guest(module=True, translation=translation))
    with pytest.raises(RefusedError, match="sse4a"):
        note_module(store, "g", loaded=False)
    assert store.read("g").module


def test_of_nobody_nothing_is_noted(store: GuestStore) -> None:
    with pytest.raises(InputError, match="no guest of that name"):
        note_module(store, "g", loaded=True)
