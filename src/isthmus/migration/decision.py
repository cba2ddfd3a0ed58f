"""What to do with a migration that did not go to its end: a pure decision.

The engine asks after a failure, recovery asks after a crash of the engine; both act on the same
answer.  The rule behind all of it: at every instant at most one copy of the guest runs, and no copy
is destroyed while the other is not known to be whole.
"""

import enum

from isthmus.migration.phases import MAY_HAVE_RUN, UNTOUCHED, Phase
from isthmus.values import Value


class Copy(enum.StrEnum):
    """The state of one copy of the guest, as far as it can be found out."""

    RUNNING = "running"
    HELD = "held"  # whole, and standing still
    PARTIAL = "partial"  # a destination that has not loaded everything
    DEAD = "dead"  # its process is gone for certain
    UNREACHABLE = "unreachable"  # it may run; nobody can tell


class Action(enum.StrEnum):
    """What brings the migration to its end."""

    ROLL_BACK = "roll-back"  # destroy the destination, then let the source run on
    FINISH = "finish"  # let the destination run (if it does not), verify, destroy the source
    HOLD = "hold"  # touch nothing that runs; the operator decides
    LOST = "lost"  # no whole copy is left


class Situation(Value, frozen=True):
    """All that the decision depends on.

    ``failed``: verification found that the guest does not live on the destination.
    ``traceless``: the destination has provably written to no disk.
    ``rolling_back``: to roll back was decided and written down already, and perhaps half done.
    ``split``: the guest runs at the destination by postcopy, and not all its memory is there: no
    copy is whole until the rest has followed.
    """

    phase: Phase
    source: Copy
    destination: Copy
    failed: bool = False
    traceless: bool = False
    rolling_back: bool = False
    split: bool = False


class Decision(Value, frozen=True):
    """The action, and the reason in words for the record and the operator."""

    action: Action
    reason: str


WHOLE = frozenset({Copy.RUNNING, Copy.HELD})
"""The states of a copy that could be the guest."""


def decide(situation: Situation) -> Decision:
    """Decide how a migration that stopped in ``situation.phase`` is brought to its end."""
    if situation.split:
        return _in_two(situation)
    if situation.source is Copy.UNREACHABLE:
        return _decision(Action.HOLD, "the source does not answer and may be running")
    if situation.rolling_back and situation.source in WHOLE:
        return _decision(Action.ROLL_BACK, "rolling back had begun")
    if situation.phase in MAY_HAVE_RUN:
        return _after_start(situation)
    return _before_start(situation)


def chosen(winner: str, situation: Situation) -> Decision:
    """The operator's decision which copy goes on, ``source`` or ``destination``.

    One that is not there cannot: the other may be all that is left of the guest.
    """
    copy = situation.source if winner == "source" else situation.destination
    if copy not in WHOLE:
        reason = f"the {winner} has no copy that could go on ({copy}); nothing was touched"
        return _decision(Action.HOLD, reason)
    action = Action.ROLL_BACK if winner == "source" else Action.FINISH
    return _decision(action, f"the operator chose the {winner}")


def _before_start(situation: Situation) -> Decision:
    """The destination has never run: the source, if it is whole, is the guest."""
    if situation.source in WHOLE:
        return _decision(Action.ROLL_BACK, "the destination has never run")
    if situation.destination is Copy.HELD:
        return _decision(
            Action.FINISH, "the source is gone and the destination has loaded the whole guest"
        )
    if situation.destination is Copy.UNREACHABLE:
        return _decision(Action.HOLD, "the source is gone and the destination does not answer")
    if situation.destination is Copy.RUNNING and situation.phase not in UNTOUCHED:
        # Not by us: but it is all that is left.
        return _decision(Action.HOLD, "the source is gone and somebody has started the destination")
    return _decision(Action.LOST, "the source is gone and the destination is not whole")


def _after_start(situation: Situation) -> Decision:
    """The destination may have run: the source is stale unless no trace was left."""
    destination = situation.destination
    verified = situation.phase in {Phase.COMMITTING, Phase.COMMITTED}
    if destination is Copy.UNREACHABLE:
        return _decision(Action.HOLD, "the destination does not answer and may be running")
    if situation.source is Copy.RUNNING:
        if destination is Copy.DEAD:
            return _decision(Action.ROLL_BACK, "the source runs and the destination is gone")
        return _decision(Action.HOLD, "the source runs although the destination was started")
    if destination in WHOLE and (verified or not situation.failed):
        return _decision(Action.FINISH, "the destination holds the guest")
    if situation.source not in WHOLE:
        if destination in WHOLE:
            return _decision(Action.HOLD, "the destination fails and the source is gone")
        return _decision(Action.LOST, "neither copy is left")
    if situation.traceless:
        return _decision(Action.ROLL_BACK, "the destination has written to no disk")
    return _decision(
        Action.HOLD, "the guest may have written to its disk on the destination: the source is old"
    )


def _in_two(situation: Situation) -> Decision:
    """Each copy has memory that the other lacks: neither may be destroyed, neither may go back."""
    if situation.source is Copy.DEAD:
        return _decision(
            Action.LOST, "it went by postcopy, and its source ended with memory that had not gone"
        )
    if situation.destination is Copy.DEAD:
        return _decision(
            Action.LOST, "it went by postcopy, and its destination ended: the source is old"
        )
    return _decision(
        Action.HOLD,
        "it went by postcopy and its memory is in two parts: each copy has what the other lacks",
    )


def _decision(action: Action, reason: str) -> Decision:
    return Decision(action=action, reason=reason)
