"""Files of Isthmus's own that are damaged: told of, and in nobody else's way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.guests import Guest, GuestStore
from isthmus.migration.hosts import revive_translators
from isthmus.migration.phases import Phase
from isthmus.migration.record import Journal, Plan, Side

RUN = [sys.executable, "-c", "from isthmus.cli.main import main; main()"]


@pytest.fixture
def store(tmp_path: Path) -> GuestStore:
    """A guest whose process has ended, and files that are none of ours any more."""
    store = GuestStore(tmp_path / "state", tmp_path / "run")
    spec = process.LaunchSpec(
        qemu=Path("qemu"), accelerator=Accelerator.TCG, machine="pc", cpu="kvm64", vcpus=1,
        memory_mib=64, kernel=Path("k"), initrd=Path("i"), command_line="",
    )  # fmt: skip
    shown = CpuModel(name="x", source="x", vendor="x", family=1, model=1, stepping=1)
    gone = process.QemuProcess(
        identity=process.ProcessIdentity(pid=1, start_ticks=1),
        directory=tmp_path / "run/whole/0",
        command=(),
    )
    store.write(Guest(name="whole", spec=spec, host="kvm64", shown=shown, process=gone))
    (store.folder / "cut.json").write_text('{"name": "cut", "spe')
    (store.folder / "not ours.json").write_text("x")
    store.journals.mkdir(parents=True)
    (store.journals / "torn.journal").write_text("{}")
    (store.journals / "begun.journal").write_bytes(bytes(65536))
    return store


def isthmus(store: GuestStore, *words: str) -> subprocess.CompletedProcess[str]:
    state = store.folder.parent
    return subprocess.run(
        [*RUN, *words],
        env=os.environ | {"ISTHMUS_STATE": str(state), "ISTHMUS_RUN": str(store.run)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_status_shows_what_can_be_read_and_names_the_rest(store: GuestStore) -> None:
    done = isthmus(store, "status", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [guest["name"] for guest in shown["guests"]] == ["whole"]
    assert shown["problems"].keys() == {"cut", "torn"}
    told = isthmus(store, "status").stderr
    assert "guest cut: " in told
    assert "migration torn: " in told


@pytest.mark.parametrize("words", [("guest", "list"), ("translate", "status")])
def test_one_damaged_guest_does_not_hide_the_others(
    store: GuestStore, words: tuple[str, ...]
) -> None:
    done = isthmus(store, *words)
    assert "whole" in done.stdout
    assert done.returncode == 2
    assert "cut.json" in done.stderr
    assert "isthmus guest stop cut" in done.stderr


async def test_nor_does_it_keep_the_others_from_being_put_right(store: GuestStore) -> None:
    assert await revive_translators(store) == []


def test_a_damaged_guest_can_be_taken_away_with_its_move(store: GuestStore) -> None:
    plan = Plan(id="m", guest="cut", source=Side(), destination=Side(), channel="")
    journal = Journal.create(store.journals, plan)
    journal.enter(Phase.PREPARING)
    journal.close()
    (store.run / "cut/0").mkdir(parents=True)
    done = isthmus(store, "guest", "stop", "cut")
    assert done.returncode == 0, done.stderr
    assert store.names() == ["whole"]
    assert not (store.run / "cut").exists()
    assert Journal.reopen(journal.path).phase is Phase.LOST
