"""How a libvirt move that did not go to its end is settled, for all that both daemons can say."""

import itertools
from pathlib import Path

import pytest

from isthmus.errors import HypervisorError, RolledBackError, UndecidedError
from isthmus.hypervisor.libvirt.connection import LibvirtError
from isthmus.migration import libvirt
from isthmus.migration.decision import Action, Copy, Situation, decide
from isthmus.migration.libvirt_ends import DestinationEnd, End, is_split, reached
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.migration.record import Journal, Plan, Side


def settled(
    source: Copy,
    destination: Copy,
    *,
    phase: Phase = Phase.STARTING,
    kept: bool = False,
    traceless: bool = False,
    split: bool = False,
) -> Action:
    """What is decided of a move that libvirt was told to make."""
    return decide(
        Situation(
            phase=reached(phase, source, destination, kept=kept),
            source=source,
            destination=destination,
            traceless=traceless,
            split=split,
        )
    ).action


@pytest.mark.parametrize(
    ("source", "destination", "action"),
    [
        # The destination ended, or never loaded it all: the guest has never left.
        (Copy.RUNNING, Copy.DEAD, Action.ROLL_BACK),
        (Copy.RUNNING, Copy.PARTIAL, Action.ROLL_BACK),
        # libvirt has finished without us.
        (Copy.DEAD, Copy.RUNNING, Action.FINISH),
        # Its last step was lost: the source was not destroyed.
        (Copy.HELD, Copy.RUNNING, Action.FINISH),
        (Copy.DEAD, Copy.HELD, Action.FINISH),
        # Nobody can tell.
        (Copy.RUNNING, Copy.UNREACHABLE, Action.HOLD),
        (Copy.HELD, Copy.UNREACHABLE, Action.HOLD),
        (Copy.UNREACHABLE, Copy.DEAD, Action.HOLD),
        (Copy.RUNNING, Copy.RUNNING, Action.HOLD),
        (Copy.DEAD, Copy.DEAD, Action.LOST),
        # Its memory went on by postcopy, and the destination is gone.
        (Copy.PARTIAL, Copy.DEAD, Action.LOST),
    ],
)
def test_what_is_decided(source: Copy, destination: Copy, action: Action) -> None:
    assert settled(source, destination) is action


def test_a_guest_that_was_paused_by_somebody_goes_nowhere() -> None:
    assert settled(Copy.HELD, Copy.DEAD, kept=True) is Action.ROLL_BACK


def test_a_stopped_source_is_resumed_only_if_no_disk_was_written() -> None:
    assert settled(Copy.HELD, Copy.DEAD, traceless=True) is Action.ROLL_BACK
    assert settled(Copy.HELD, Copy.DEAD, traceless=False) is Action.HOLD


def test_the_source_is_never_let_go_beside_a_destination_that_runs_or_may() -> None:
    for source, destination, kept, traceless in itertools.product(
        Copy, (Copy.RUNNING, Copy.UNREACHABLE), (True, False), (True, False)
    ):
        action = settled(source, destination, kept=kept, traceless=traceless)
        assert action is not Action.ROLL_BACK


def test_the_destination_is_never_finished_beside_a_source_that_runs_or_may() -> None:
    for source, destination, kept in itertools.product(
        (Copy.RUNNING, Copy.UNREACHABLE), Copy, (True, False)
    ):
        assert settled(source, destination, kept=kept) is not Action.FINISH


@pytest.mark.parametrize(
    ("code", "copy"),
    [("VIR_ERR_NO_DOMAIN", Copy.DEAD), ("VIR_ERR_OPERATION_TIMEOUT", Copy.UNREACHABLE)],
)
async def test_only_a_guest_that_is_not_there_is_dead(
    code: str, copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that refuses to tell has told nothing: its guest may run."""
    libvirt = pytest.importorskip("libvirt")
    end = End(Side(address="test:///default", domain="0"))

    async def refuses(self: object) -> None:
        raise LibvirtError("no", getattr(libvirt, code))

    monkeypatch.setattr(End, "domain", refuses)
    assert await end.state() is copy


@pytest.mark.parametrize(
    ("source", "destination", "action"),
    [
        (Copy.PARTIAL, Copy.PARTIAL, Action.HOLD),
        (Copy.PARTIAL, Copy.UNREACHABLE, Action.HOLD),
        (Copy.UNREACHABLE, Copy.PARTIAL, Action.HOLD),
        # What has not followed is gone with the source; what has run since, with the destination.
        (Copy.DEAD, Copy.PARTIAL, Action.LOST),
        (Copy.PARTIAL, Copy.DEAD, Action.LOST),
    ],
)
def test_a_guest_in_two_parts_is_neither_finished_nor_taken_back(
    source: Copy, destination: Copy, action: Action
) -> None:
    for traceless, kept in itertools.product((True, False), repeat=2):
        assert settled(source, destination, traceless=traceless, kept=kept, split=True) is action


def test_postcopy_is_known_by_libvirts_words() -> None:
    libvirt = pytest.importorskip("libvirt")
    there = DestinationEnd(Side(address="test:///default", domain="0"))
    waits = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY)
    broken = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
    left = (libvirt.VIR_DOMAIN_NOSTATE, 0)
    for reason, split in {
        libvirt.VIR_DOMAIN_RUNNING_POSTCOPY: True,
        libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED: True,
        libvirt.VIR_DOMAIN_RUNNING_MIGRATED: False,
    }.items():
        words = (libvirt.VIR_DOMAIN_RUNNING, reason)
        copy = there._copy(*words)
        assert copy is (Copy.PARTIAL if split else Copy.RUNNING)
        for source in (waits, broken, left):
            assert is_split(source, copy, words) is split
    # Nobody knows whether the rest has come.
    for copy in (Copy.HELD, Copy.DEAD, Copy.UNREACHABLE, Copy.PARTIAL):
        assert is_split(broken, copy, left)
    assert not is_split(
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION), Copy.DEAD, left
    )


class Seen:
    """One end that is as it is told to be, and writes down what is done to it."""

    def __init__(self, state: Copy, done: list[str], name: str) -> None:
        self.is_ = state
        self.done = done
        self.name = name

    async def state(self) -> Copy:
        return self.is_

    async def told(self) -> tuple[Copy, int, int]:
        return self.is_, 0, 0  # VIR_DOMAIN_NOSTATE, without a reason

    async def destroy(self) -> None:
        self.done.append(f"destroy {self.name}")
        self.is_ = Copy.DEAD

    async def resume(self) -> None:
        self.done.append(f"resume {self.name}")
        self.is_ = Copy.RUNNING

    async def close(self) -> None:
        pass


def cut(
    folder: Path, phases: tuple[Phase, ...], source: Copy, destination: Copy
) -> tuple[libvirt._Run, list[str]]:
    """A move that was cut short after these phases, and what is done to its ends."""
    end = Side(address="qemu:///a", domain="u")
    plan = Plan(id="m", guest="web", source=end, destination=end, channel="")
    journal = Journal.create(folder, plan)
    for phase in phases:
        journal.enter(phase)
    run = libvirt._Run(journal, Options(), lambda _: None)
    done: list[str] = []
    run.source = Seen(source, done, "source")  # type: ignore[assignment]
    run.destination = Seen(destination, done, "destination")  # type: ignore[assignment]

    async def at_rest(*_: Copy) -> bool:
        return False

    async def lives() -> None:
        pass

    async def arrived() -> None:
        run.enter(Phase.VERIFYING)

    async def shut_down(_: Situation) -> str:
        return ""

    run._busy = at_rest  # type: ignore[method-assign]
    run.verify = lives  # type: ignore[method-assign]
    run._arrived = arrived  # type: ignore[method-assign]
    run._shut_down = shut_down  # type: ignore[method-assign]
    return run, done


WAY = (Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.STARTING, Phase.VERIFYING)


@pytest.mark.parametrize("steps", [1, 2])
async def test_a_guest_that_was_there_before_is_not_ended_with_the_move(
    tmp_path: Path, steps: int
) -> None:
    """It is refused because of that one: to end it then would end somebody's guest."""
    run, done = cut(tmp_path, WAY[:steps], Copy.RUNNING, Copy.RUNNING)
    with pytest.raises(RolledBackError):
        await run.settle(HypervisorError("b has a running guest with that UUID"))
    assert done == []
    assert run.journal.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize(
    ("use", "source", "destination"),
    [
        ("source", Copy.DEAD, Copy.RUNNING),
        ("source", Copy.UNREACHABLE, Copy.HELD),
        ("destination", Copy.HELD, Copy.DEAD),
        ("destination", Copy.RUNNING, Copy.PARTIAL),
    ],
)
async def test_the_operator_cannot_end_the_last_copy_by_choosing_one_that_is_not_there(
    tmp_path: Path, use: str, source: Copy, destination: Copy
) -> None:
    run, done = cut(tmp_path, WAY, source, destination)
    with pytest.raises(UndecidedError, match=f"the {use} has no copy that could go on"):
        await run.impose(use)
    assert done == []
    assert run.journal.phase is Phase.VERIFYING


async def test_a_record_of_a_guest_that_neither_has_can_be_closed(tmp_path: Path) -> None:
    run, done = cut(tmp_path, WAY, Copy.DEAD, Copy.DEAD)
    await run.impose("source")
    assert done == []
    assert run.journal.record.final


async def test_a_destination_takes_over_from_a_source_that_ended_while_it_was_rolled_back_to(
    tmp_path: Path,
) -> None:
    run, done = cut(tmp_path, (*WAY, Phase.ROLLING_BACK), Copy.DEAD, Copy.HELD)
    await run.settle(HypervisorError("killed"))
    assert done == ["resume destination"]
    assert run.journal.phase is Phase.COMMITTED


async def test_a_roll_back_that_was_killed_half_way_goes_on(tmp_path: Path) -> None:
    """The destination has gone, and the source stands still; it may have a disk."""
    run, done = cut(tmp_path, (*WAY, Phase.ROLLING_BACK), Copy.HELD, Copy.DEAD)
    with pytest.raises(RolledBackError):
        await run.settle(HypervisorError("killed"))
    assert done == ["resume source"]
    assert run.journal.phase is Phase.ROLLED_BACK
