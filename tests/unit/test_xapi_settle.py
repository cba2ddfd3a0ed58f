"""What is seen of a guest after a move by XAPI has one meaning, and never two live copies."""

import itertools

import pytest

from isthmus.hypervisor.xapi.compatibility import Demand
from isthmus.hypervisor.xapi.inventory import Guest
from isthmus.hypervisor.xapi.records import NULL, PowerState, VmRecord
from isthmus.migration.decision import Action, Copy, decide
from isthmus.migration.phases import Phase
from isthmus.migration.xapi_settle import Look, Seen, situation, told

ORDERED = [Phase.STARTING, Phase.VERIFYING, Phase.COMMITTING]
STATES: list[PowerState | None] = [*PowerState, None]


def seen(state: PowerState | None, resident: str = "", *, answered: bool = True) -> Seen:
    if state is None:
        return Seen(answered=answered)
    record = VmRecord(uuid="u", name_label="g", power_state=state, resident_on=resident or NULL)
    guest = Guest(
        ref="r", record=record, kind="hvm", demand=Demand(vendor="", hvm=True, features=())
    )
    return Seen(answered=answered, guest=guest, resident=resident)


def between(home: Seen, away: Seen) -> Look:
    return Look(source="a", destination="b", home=home, away=away)


def within(home: Seen) -> Look:
    return Look(source="a", destination="b", home=home)


@pytest.mark.parametrize("phase", ORDERED)
@pytest.mark.parametrize(("home", "away"), list(itertools.product(STATES, STATES)))
def test_between_pools(phase: Phase, home: PowerState | None, away: PowerState | None) -> None:
    look = between(seen(home, "a"), seen(away, "b"))
    action = decide(situation(phase, look)).action
    live, gone = {PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED}, {
        PowerState.HALTED, None,
    }  # fmt: skip
    if action is Action.ROLL_BACK:
        assert home in live
        assert away in gone
    if action is Action.FINISH:
        assert away in live
        assert home is not PowerState.RUNNING
    if home is away is PowerState.RUNNING:
        assert action is Action.HOLD
    if home in gone and away in gone:
        assert action is Action.LOST
    assert told(look)


@pytest.mark.parametrize("phase", ORDERED)
@pytest.mark.parametrize("silent", ["home", "away", "both"])
@pytest.mark.parametrize("state", STATES)
def test_while_a_pool_is_silent_nothing_is_decided(
    phase: Phase, silent: str, state: PowerState | None
) -> None:
    quiet = seen(None, answered=False)
    look = between(
        quiet if silent != "away" else seen(state, "a"),
        quiet if silent != "home" else seen(state, "b"),
    )
    assert decide(situation(phase, look)).action is Action.HOLD
    assert "does not answer" in told(look)


@pytest.mark.parametrize(
    ("state", "resident", "copies", "action"),
    [
        (PowerState.RUNNING, "a", (Copy.RUNNING, Copy.DEAD), Action.ROLL_BACK),
        (PowerState.RUNNING, "b", (Copy.DEAD, Copy.RUNNING), Action.FINISH),
        (PowerState.RUNNING, "c", (Copy.UNREACHABLE, Copy.UNREACHABLE), Action.HOLD),
        (PowerState.SUSPENDED, "", (Copy.HELD, Copy.DEAD), Action.ROLL_BACK),
        (PowerState.PAUSED, "b", (Copy.DEAD, Copy.HELD), Action.FINISH),
        (PowerState.HALTED, "", (Copy.DEAD, Copy.DEAD), Action.LOST),
        (None, "", (Copy.DEAD, Copy.DEAD), Action.LOST),
    ],
)
def test_within_a_pool(
    state: PowerState | None, resident: str, copies: tuple[Copy, Copy], action: Action
) -> None:
    look = within(seen(state, resident))
    assert look.copies == copies
    assert decide(situation(Phase.STARTING, look)).action is action


def test_a_third_host_is_told() -> None:
    assert "third host" in told(within(seen(PowerState.RUNNING, "c")))
