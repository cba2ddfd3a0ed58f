"""A move between two Xen hosts ends with exactly one live guest, whatever fails.

The toolstack is a stand-in that keeps to xl's handshake; the same moves between real hosts are in
tests/lab/test_xen_migrate.py.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from test_xen_hosts import INFO, policies
from xen_moves import ALIVE, Hosts

from isthmus.errors import (
    InputError,
    IsthmusError,
    RefusedError,
    RolledBackError,
    UndecidedError,
)
from isthmus.hypervisor.xen.runner import Runner
from isthmus.migration import xen, xen_copies
from isthmus.migration.options import Observer, Progress
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord, records
from isthmus.qualification.lab import xen_stream


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
