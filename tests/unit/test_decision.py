"""What is done with a move that was cut short, where more than one thing went wrong."""

from pathlib import Path

import pytest

from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration.decision import Action, Copy, Situation, decide
from isthmus.migration.hosts import require_at_rest, unfinished
from isthmus.migration.phases import FINAL, Phase
from isthmus.migration.record import Journal, Plan, Side


def situation(phase: Phase, source: Copy, destination: Copy, **more: bool) -> Situation:
    return Situation(phase=phase, source=source, destination=destination, **more)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.VERIFYING])
@pytest.mark.parametrize("traceless", [False, True])
def test_a_source_that_runs_again_and_a_destination_that_is_gone_are_one_guest(
    phase: Phase, traceless: bool
) -> None:
    """The process that rolled back was killed before it could write that it had."""
    found = situation(phase, Copy.RUNNING, Copy.DEAD, traceless=traceless)
    assert decide(found).action is Action.ROLL_BACK


@pytest.mark.parametrize("destination", [Copy.HELD, Copy.RUNNING, Copy.DEAD])
def test_a_roll_back_that_had_begun_is_not_turned_into_a_start(destination: Copy) -> None:
    found = situation(Phase.VERIFYING, Copy.HELD, destination, rolling_back=True)
    assert decide(found).action is Action.ROLL_BACK


def test_a_roll_back_that_had_begun_does_not_outweigh_a_source_that_may_run() -> None:
    found = situation(Phase.VERIFYING, Copy.UNREACHABLE, Copy.DEAD, rolling_back=True)
    assert decide(found).action is Action.HOLD


def test_a_roll_back_whose_source_is_gone_keeps_the_destination() -> None:
    found = situation(Phase.VERIFYING, Copy.DEAD, Copy.HELD, rolling_back=True)
    assert decide(found).action is not Action.ROLL_BACK
    assert decide(found).action is not Action.LOST


@pytest.mark.parametrize("phase", [Phase.MOVING, Phase.SWITCHED])
def test_a_destination_that_somebody_has_started_is_not_ended_as_lost(phase: Phase) -> None:
    """An operator's own help, say, after source and mover had died: it is all that is left."""
    assert decide(situation(phase, Copy.DEAD, Copy.RUNNING)).action is Action.HOLD


def opened(folder: Path) -> Journal:
    plan = Plan(id="m", guest="web", source=Side(), destination=Side(), channel="")
    return Journal.create(folder, plan)


def test_the_record_tells_that_rolling_back_had_begun_until_something_goes_on(
    tmp_path: Path,
) -> None:
    journal = opened(tmp_path)
    for phase in (Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.SWITCHED, Phase.STARTING):
        journal.enter(phase)
        assert not journal.record.rolling_back
    journal.enter(Phase.UNDECIDED)
    assert not journal.record.rolling_back
    journal.enter(Phase.ROLLING_BACK)
    journal.enter(Phase.UNDECIDED)
    assert journal.record.rolling_back
    assert journal.record.reached is Phase.STARTING
    journal.enter(Phase.VERIFYING)
    assert not journal.record.rolling_back
    journal.close()


def test_a_destination_that_dies_while_its_source_is_to_be_ended_can_be_rolled_back(
    tmp_path: Path,
) -> None:
    """The way back is written down, too: else the record would stay open for ever."""
    journal = opened(tmp_path)
    for phase in (
        Phase.PREPARING, Phase.PREPARED, Phase.MOVING, Phase.SWITCHED, Phase.STARTING,
        Phase.VERIFYING, Phase.COMMITTING,
    ):  # fmt: skip
        journal.enter(phase)
    found = situation(journal.record.reached, Copy.HELD, Copy.DEAD, traceless=True)
    assert decide(found).action is Action.ROLL_BACK
    journal.note(Phase.ROLLING_BACK)
    journal.note(Phase.ROLLED_BACK)
    assert journal.record.final
    journal.close()


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in FINAL])
def test_a_guest_that_is_lost_stands_in_no_later_guests_way(tmp_path: Path, phase: Phase) -> None:
    store = GuestStore(tmp_path / "state", tmp_path / "run")
    journal = opened(store.journals)
    journal._record = journal._record.replace(
        steps=(*journal._record.steps, journal._record.steps[0].replace(phase=phase))
    )
    journal.enter(Phase.LOST, "both died")
    journal.close()
    assert unfinished(store) == []
    require_at_rest(store, "web")
