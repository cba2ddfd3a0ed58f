"""The phases of a migration: one enum for code, record, progress display, metrics and tests.

::

    observed -> preparing -> prepared -> moving -> switched -> starting -> verifying
                                                                 -> committing -> committed
    (any before starting) -> rolling-back -> rolled-back
    starting … committing -> rolling-back   only where the guest left no trace on the destination
    anything              -> undecided      the operator must say which copy is the true one
    anything              -> lost           no copy is left: both died, or the operator ended it
    observed              -> refused        preflight

Up to and including ``switched`` the destination has never run, so the source may always be
resumed.  From ``starting`` on it may have run, so the source may be resumed only after it is proved
that the destination is stopped for good and has touched no disk.
"""

import enum


class Phase(enum.StrEnum):
    """Where a migration stands; the value is what the record and ``--json`` show."""

    OBSERVED = "observed"
    REFUSED = "refused"
    PREPARING = "preparing"
    PREPARED = "prepared"
    MOVING = "moving"
    SWITCHED = "switched"
    STARTING = "starting"
    VERIFYING = "verifying"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"
    UNDECIDED = "undecided"
    LOST = "lost"


FINAL = frozenset({Phase.REFUSED, Phase.COMMITTED, Phase.ROLLED_BACK, Phase.LOST})
"""Phases after which nothing is left to do."""

UNTOUCHED = frozenset({Phase.OBSERVED, Phase.PREPARING, Phase.PREPARED})
"""Phases in which nothing has been done to the source: as it is, so it is left."""

MAY_HAVE_RUN = frozenset({Phase.STARTING, Phase.VERIFYING, Phase.COMMITTING, Phase.COMMITTED})
"""Phases in which the destination may have executed guest instructions."""

_P = Phase
_WAYS: dict[Phase, frozenset[Phase]] = {
    _P.OBSERVED: frozenset({_P.REFUSED, _P.PREPARING, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.PREPARING: frozenset({_P.PREPARED, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.PREPARED: frozenset({_P.MOVING, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.MOVING: frozenset({_P.SWITCHED, _P.STARTING, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.SWITCHED: frozenset({_P.STARTING, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.STARTING: frozenset({_P.STARTING, _P.VERIFYING, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.VERIFYING: frozenset(
        {_P.STARTING, _P.VERIFYING, _P.COMMITTING, _P.ROLLING_BACK, _P.UNDECIDED}
    ),
    _P.COMMITTING: frozenset({_P.COMMITTING, _P.COMMITTED, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.ROLLING_BACK: frozenset({_P.ROLLED_BACK, _P.ROLLING_BACK, _P.UNDECIDED}),
    _P.UNDECIDED: frozenset(
        {_P.STARTING, _P.VERIFYING, _P.ROLLING_BACK, _P.COMMITTING, _P.UNDECIDED}
    ),
}
TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    **{phase: ways | {_P.LOST} for phase, ways in _WAYS.items()},
    **dict.fromkeys(FINAL, frozenset[Phase]()),
}
