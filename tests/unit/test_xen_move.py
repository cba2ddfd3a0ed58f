"""A move between two Xen hosts ends with exactly one live guest, whatever fails.

The toolstack is a stand-in that keeps to xl's handshake; the same moves between real hosts are in
tests/lab/test_xen_migrate.py.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_xen_hosts import INFO, policies
from xen_stand_in import UUID, FakeHost

from isthmus.errors import (
    InputError,
    IsthmusError,
    LostError,
    RefusedError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.xen.runner import Runner
from isthmus.migration import xen, xen_copies, xen_recovery
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.phases import Phase
from isthmus.migration.platforms import Request
from isthmus.migration.record import MigrationRecord, records
from isthmus.qualification.lab import xen_stream

ALIVE = {"web": "-b----"}
WAIT_S = 120


class Hosts:
    """Two hosts of both makers with one guest on the first, and where moves are kept."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.intel = FakeHost(
            folder / "intel", "xen+ssh://intel", INFO, policies("GenuineIntel", 5, 0x80000001)
        )
        self.amd = FakeHost(
            folder / "amd", "xen+ssh://amd", INFO, policies("AuthenticAMD", 5, 0x80000001)
        )
        self.store = GuestStore(folder / "state", folder / "run")
        self.intel.start()
        ways = {host.address: host.runner for host in (self.intel, self.amd)}
        monkeypatch.setattr(xen, "runner_of", ways.__getitem__)
        monkeypatch.setattr(xen_recovery, "VERIFY_S", 0.2)

    def request(self, *, verify_s: float = 0.2, **more: object) -> Request:
        return Request(
            guest="web",
            source=self.intel.address,
            destination=self.amd.address,
            options=Options(verify_s=verify_s),
            force=True,
            **more,  # type: ignore[arg-type]
        )

    def move(self, observer: Observer = lambda _: None) -> MigrationRecord:
        return asyncio.run(xen.move(self.request(), self.store, observer))

    def recover(self, use: str = "") -> MigrationRecord:
        ((path, _),) = records(self.store.journals)
        return asyncio.run(xen.recover(path, self.store, lambda _: None, use))

    @property
    def record(self) -> MigrationRecord:
        ((_, record),) = records(self.store.journals)
        return record


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    return Hosts(tmp_path, monkeypatch)


def phases(record: MigrationRecord) -> list[Phase]:
    return [step.phase for step in record.steps]


def test_a_guest_moves_and_its_stream_is_rewritten(hosts: Hosts) -> None:
    record = hosts.move()
    assert hosts.amd.guests() == ALIVE
    assert not hosts.intel.guests()
    assert phases(record) == [
        Phase.OBSERVED, Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.SWITCHED,
        Phase.STARTING, Phase.VERIFYING, Phase.COMMITTING, Phase.COMMITTED,
    ]  # fmt: skip
    assert record.plan.platform == "xen"
    assert record.figures is not None
    data = xen_stream.pv_stream()
    arrived = (hosts.amd.folder / "arrived").read_bytes()
    assert record.figures.moved_bytes >= len(data)
    assert len(arrived) == len(data)
    assert arrived != data, "the machine-check capabilities are AMD's"


@pytest.mark.parametrize(
    ("host", "what", "said"),
    [
        ("amd", "refuse", "Failed to set CPUID policy: leaf 80000000"),
        ("amd", "not-start", "cannot start the guest (status 5)"),
        ("amd", "die", "the guest has crashed"),
        ("intel", "logdirty", "Failed to enable logdirty"),
        ("intel", "no-config", "No config file stored"),
    ],
)
def test_a_move_that_fails_leaves_the_guest_at_its_source(
    hosts: Hosts, host: str, what: str, said: str
) -> None:
    getattr(hosts, host).does(what)
    with pytest.raises(RolledBackError) as caught:
        hosts.move()
    assert said in str(caught.value)
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()
    assert hosts.record.phase is Phase.ROLLED_BACK
    assert said in hosts.record.error


def test_a_dead_guest_that_may_have_written_to_its_disk_is_held(hosts: Hosts) -> None:
    hosts.amd.does("die")
    (hosts.intel.folder / "disks").write_text('[{"vdev": "xvda"}]')
    with pytest.raises(UndecidedError, match="may have written to its disk"):
        hosts.move()
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}, "whole, and it does not run"
    assert hosts.recover("source").phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()


def test_a_destination_that_keeps_a_dead_guest_lets_no_source_go_on(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.amd.does("die")
    hosts.amd.does("stay")
    monkeypatch.setattr(xen_copies, "DESTROY_TIMEOUT_S", 1.0)
    with pytest.raises(UndecidedError, match="cannot be destroyed"):
        hosts.move()
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}


def test_preflight_refuses_before_anything_moves(hosts: Hosts) -> None:
    (hosts.amd.folder / "policies").write_text(policies("AuthenticAMD", 1, 0x80000001))
    request = hosts.request().replace(force=False)
    with pytest.raises(RefusedError, match="Failed to set CPUID policy: leaf 00000000"):
        asyncio.run(xen.move(request, hosts.store, lambda _: None))
    assert hosts.intel.guests() == ALIVE
    assert not records(hosts.store.journals)


def test_a_host_without_hvm_is_told_to_take_no_pvh_guest(hosts: Hosts) -> None:
    """Xen prints no HVM policy where its processor or build has none."""
    path = hosts.amd.folder / "policies"
    path.write_text(re.sub(r"HVM \w+ policy.*?(?=PV|\Z)", "", path.read_text(), flags=re.DOTALL))
    (hosts.amd.folder / "info").write_text(INFO.replace("pv hvm hap", "pv"))
    (hosts.intel.folder / "type").write_text("pvh")
    request = hosts.request().replace(force=False)
    with pytest.raises(RefusedError, match="runs no pvh guests"):
        asyncio.run(xen.move(request, hosts.store, lambda _: None))
    assert hosts.intel.guests() == ALIVE


def test_a_name_that_is_taken_there_is_refused(hosts: Hosts) -> None:
    hosts.amd.start("web--migratedaway")
    with pytest.raises(InputError, match="has a guest web--migratedaway already"):
        hosts.move()


def test_a_host_that_is_not_reached_is_named(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Runner(address="xen+ssh://amd", program=("/bin/sh", "-c", "echo no route >&2; exit 255"))
    ways = {"xen+ssh://intel": hosts.intel.runner, "xen+ssh://amd": lost}
    monkeypatch.setattr(xen, "runner_of", ways.__getitem__)
    with pytest.raises(IsthmusError, match=r"xen\+ssh://amd: the host is not reached: no route"):
        hosts.move()
    assert hosts.intel.guests() == ALIVE


def at(phase: Phase, fault: Callable[[], object]) -> Observer:
    """An observer that makes a fault when a phase has been written."""

    def observe(progress: Progress) -> None:
        if progress.phase is phase:
            fault()

    return observe


ENDS = {
    "out": re.compile(rb"cat\0.*/out\0$"),
    "in": re.compile(rb"exec cat > .*/in\0$|^cat\0$"),
    "receiver": re.compile(rb"migrate-receive\0$"),
}
"""The command lines of the programs that carry the connections: of the transport at the source the
stream and the answers (before and after it is opened), and that to the destination."""


def drop(end: str) -> None:
    """Kill the program of this process that carries a connection."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"\nPPid:\t{os.getpid()}\n" in (path / "status").read_text()
            if ours and ENDS[end].search((path / "cmdline").read_bytes()):
                found.append(int(path.name))
    (pid,) = found
    os.kill(pid, signal.SIGKILL)


def test_a_guest_that_lives_there_is_kept_although_the_source_is_cut_off(hosts: Hosts) -> None:
    record = hosts.move(at(Phase.VERIFYING, lambda: drop("in")))
    assert record.phase is Phase.COMMITTED
    assert hosts.amd.guests() == ALIVE
    assert not hosts.intel.guests(), "its copy, which nobody could tell of the end, is destroyed"


def test_a_dead_guest_goes_on_at_a_source_that_was_cut_off(hosts: Hosts) -> None:
    hosts.amd.does("die")
    with pytest.raises(RolledBackError, match="the guest has crashed"):
        hosts.move(at(Phase.VERIFYING, lambda: drop("in")))
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()
    assert hosts.record.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("end", ["in", "out", "receiver"])
def test_a_connection_that_breaks_before_the_start_leaves_the_source(
    hosts: Hosts, end: str
) -> None:
    with pytest.raises(RolledBackError):
        hosts.move(at(Phase.MOVING, lambda: drop(end)))
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()
    assert hosts.record.phase is Phase.ROLLED_BACK


def test_a_destination_that_is_lost_before_the_start_does_not_hold_the_guest_up(
    hosts: Hosts,
) -> None:
    def lost() -> None:
        hosts.amd.does("vanish")
        drop("receiver")

    with pytest.raises(RolledBackError, match="the guest runs on its source"):
        hosts.move(at(Phase.MOVING, lost))
    assert hosts.intel.guests() == ALIVE
    assert hosts.record.phase is Phase.ROLLED_BACK
    assert "when it comes back: xl destroy web--incoming" in hosts.record.error
    assert "no route" in hosts.record.error


def test_a_destination_that_is_lost_after_the_start_is_the_operators_to_judge(
    hosts: Hosts,
) -> None:
    def lost() -> None:
        hosts.amd.does("vanish")

    with pytest.raises(UndecidedError, match="does not answer and may be running"):
        hosts.move(at(Phase.VERIFYING, lost))
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}
    with pytest.raises(UndecidedError, match="may be running"):
        hosts.recover()
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}
    # The operator has made sure that the host is off.
    record = hosts.recover("source")
    assert record.phase is Phase.ROLLED_BACK
    assert "xl destroy web" in record.error
    assert hosts.intel.guests() == ALIVE


def test_a_tool_that_fails_now_and_then_ends_no_guest(hosts: Hosts) -> None:
    """In the lab an ``xl list`` died on the destination, and its guest was taken for gone."""
    record = hosts.move(at(Phase.VERIFYING, lambda: hosts.amd.does("stumble", times=2)))
    assert record.phase is Phase.COMMITTED
    assert hosts.amd.guests() == ALIVE
    assert not hosts.intel.guests()


def test_a_host_that_does_not_tell_is_the_operators_to_judge(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xen_copies, "TELLING_S", 1.0)
    with pytest.raises(UndecidedError, match="does not answer and may be running"):
        hosts.move(at(Phase.VERIFYING, lambda: hosts.amd.does("stumble", times=999)))
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}
    assert hosts.amd.guests() == ALIVE
    hosts.amd.does("stumble", times=0)
    assert hosts.recover().phase is Phase.COMMITTED
    assert hosts.amd.guests() == ALIVE
    assert not hosts.intel.guests()


KILLED = """
import asyncio, os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import pytest
from test_xen_move import Hosts, xen
from isthmus.migration.options import Progress
hosts = Hosts.__new__(Hosts)
from xen_stand_in import FakeHost
hosts.intel, hosts.amd = FakeHost.__new__(FakeHost), FakeHost.__new__(FakeHost)
for host, name in ((hosts.intel, "intel"), (hosts.amd, "amd")):
    host.folder, host.address = Path({folder!r}) / name, "xen+ssh://" + name
xen.runner_of = {{h.address: h.runner for h in (hosts.intel, hosts.amd)}}.__getitem__
from isthmus.hypervisor.qemu.guests import GuestStore
hosts.store = GuestStore(Path({folder!r}) / "state", Path({folder!r}) / "run")
def observe(progress):
    if progress.phase == {phase!r}:
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(xen.move(hosts.request(), hosts.store, observe))
"""


def killed_in(phase: str, tmp_path: Path) -> None:
    """Let another process move the guest, and be killed once it has written ``phase``."""
    paths = [str(Path(__file__).parent)]
    script = KILLED.format(paths=paths, folder=str(tmp_path), phase=phase)
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=WAIT_S, check=False, capture_output=True,
        env=os.environ | {"PYTHONPATH": ":".join(paths)},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    "phase", ["prepared", "moving", "switched", "starting", "verifying", "committing"]
)
def test_a_killed_mover_leaves_one_guest_after_recovery(
    hosts: Hosts, tmp_path: Path, phase: str
) -> None:
    killed_in(phase, tmp_path)
    # xl at both ends finds its transport at an end, and acts for itself.
    settled(hosts)
    hosts.recover()
    assert hosts.record.final
    everywhere = [*hosts.intel.guests().items(), *hosts.amd.guests().items()]
    assert everywhere == [("web", "-b----")]


def test_a_killed_movers_guest_goes_on_although_the_destination_is_lost(
    hosts: Hosts, tmp_path: Path
) -> None:
    killed_in("moving", tmp_path)
    settled(hosts)
    hosts.amd.does("vanish")
    assert hosts.recover().phase is Phase.ROLLED_BACK
    assert "no route" in hosts.record.error
    assert hosts.intel.guests() == ALIVE


def test_a_mover_killed_while_it_rolled_back_does_not_leave_the_dead_copy(
    hosts: Hosts, tmp_path: Path
) -> None:
    """The guest spins at the destination, which its state does not tell."""
    hosts.amd.does("spin")
    killed_in("rolling-back", tmp_path)
    settled(hosts)
    assert hosts.amd.guests() == {"web": "r-----"}
    assert hosts.recover().phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()


def test_recovery_verifies_before_it_gives_the_source_up(hosts: Hosts, tmp_path: Path) -> None:
    hosts.amd.does("spin")
    killed_in("verifying", tmp_path)
    settled(hosts)
    record = hosts.recover()
    assert record.phase is Phase.ROLLED_BACK
    assert "is never idle" in record.error
    assert hosts.intel.guests() == ALIVE
    assert not hosts.amd.guests()


def test_recovery_leaves_a_dead_guest_with_a_disk_to_the_operator(
    hosts: Hosts, tmp_path: Path
) -> None:
    hosts.amd.does("spin")
    (hosts.intel.folder / "disks").write_text('[{"vdev": "xvda"}]')
    killed_in("verifying", tmp_path)
    settled(hosts)
    for _ in range(2):
        with pytest.raises(UndecidedError, match="may have written to its disk"):
            hosts.recover()
        assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}
    assert hosts.recover("source").phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE


@pytest.mark.parametrize(("use", "phase"), [("source", "committing"), ("destination", "moving")])
def test_the_operator_cannot_choose_a_copy_that_is_not_there(
    hosts: Hosts, tmp_path: Path, use: str, phase: str
) -> None:
    killed_in(phase, tmp_path)
    settled(hosts)
    if use == "source":
        (hosts.intel.folder / "guest-web--migratedaway").unlink()
    before = hosts.intel.guests(), hosts.amd.guests()
    with pytest.raises(UndecidedError, match=f"the {use} has no copy that could go on"):
        hosts.recover(use)
    assert (hosts.intel.guests(), hosts.amd.guests()) == before
    hosts.recover()
    assert hosts.record.final


def test_a_guest_that_is_gone_from_both_hosts_leaves_no_record_open(
    hosts: Hosts, tmp_path: Path
) -> None:
    """It was switched off after its mover had been killed, say: its name is free again."""
    killed_in("verifying", tmp_path)
    settled(hosts)
    for each in (hosts.intel.folder, hosts.amd.folder):
        for path in each.glob("guest-*"):
            path.unlink()
    with pytest.raises(LostError, match="neither host has it"):
        hosts.recover()
    assert hosts.record.phase is Phase.LOST


def test_an_incoming_copy_is_kept_where_the_source_is_gone(hosts: Hosts, tmp_path: Path) -> None:
    """It may be all that is left of the guest."""
    killed_in("verifying", tmp_path)
    settled(hosts)
    for path in hosts.intel.folder.glob("guest-*"):
        path.unlink()
    (hosts.amd.folder / "guest-web").rename(hosts.amd.folder / "guest-web--incoming")
    before = hosts.amd.guests()
    with pytest.raises(UndecidedError):
        hosts.recover()
    assert hosts.amd.guests() == before
    assert not hosts.record.final


@pytest.mark.parametrize("use", ["source", "destination"])
def test_of_two_copies_the_one_that_was_not_chosen_ends_first(
    hosts: Hosts, tmp_path: Path, use: str
) -> None:
    """Somebody has let the source's copy go on although the other runs."""
    killed_in("committing", tmp_path)
    settled(hosts)
    (hosts.intel.folder / "guest-web--migratedaway").rename(hosts.intel.folder / "guest-web")
    hosts.intel.start()
    with pytest.raises(UndecidedError, match="the source runs although the destination"):
        hosts.recover()
    record = hosts.recover(use)
    assert record.phase is (Phase.ROLLED_BACK if use == "source" else Phase.COMMITTED)
    assert (hosts.intel.guests(), hosts.amd.guests()) == (
        (ALIVE, {}) if use == "source" else ({}, ALIVE)
    )


def test_a_guest_that_was_given_the_name_since_is_left_alone(hosts: Hosts, tmp_path: Path) -> None:
    killed_in("moving", tmp_path)
    settled(hosts)
    hosts.amd.start(uuid=UUID[::-1])
    assert hosts.recover().phase is Phase.ROLLED_BACK
    assert hosts.intel.guests() == ALIVE
    assert hosts.amd.guests() == ALIVE, "another guest"


@pytest.mark.parametrize("name", ["(null)", "renamed"])
def test_a_copy_under_another_name_is_not_taken_for_gone(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(xen_copies, "TELLING_S", 1.0)
    killed_in("verifying", tmp_path)
    settled(hosts)
    (hosts.amd.folder / "guest-web").rename(hosts.amd.folder / f"guest-{name}")
    with pytest.raises(UndecidedError, match="may be running"):
        hosts.recover()
    assert hosts.intel.guests() == {"web--migratedaway": "---ss-"}


def settled(hosts: Hosts) -> None:
    """Wait until no xl of these hosts runs any more."""
    until(
        lambda: not _mentioning(str(hosts.intel.folder)) and not _mentioning(str(hosts.amd.folder))
    )


def _mentioning(text: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
