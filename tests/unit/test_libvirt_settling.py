"""How a libvirt move that did not go to its end is settled, for all that both daemons can say."""

import itertools

import pytest

from isthmus.hypervisor.libvirt.connection import LibvirtError
from isthmus.migration.decision import Action, Copy, Situation, decide
from isthmus.migration.libvirt_ends import DestinationEnd, End, is_split, reached
from isthmus.migration.phases import Phase
from isthmus.migration.record import Side


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
