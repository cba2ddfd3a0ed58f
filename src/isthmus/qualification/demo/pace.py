"""How patient the demo is: hosts that are emulated themselves are ten to a hundred times slower."""

from isthmus.values import Value


class Pace(Value, frozen=True):
    """Times in seconds, but for ``downtime_limit_ms``: QEMU's target, None for its own.

    ``boot_s``: until a guest's payload must have been heard; ``arrive_s``: the same after a move;
    ``move_s``: for a move by hand; ``verify_s``: how long the engine watches an arrival at most;
    ``abroad_s``: how long the translated guest works abroad; ``watch_s``: how long act one waits
    for a death; ``hung_s``: the silence that it takes for a hang; ``settle_s``: a death's dump is
    complete when nothing has been printed for so long.
    """

    boot_s: float = 90.0
    arrive_s: float = 20.0
    move_s: float = 60.0
    downtime_limit_ms: int | None = None
    verify_s: float = 10.0
    abroad_s: float = 3.0
    watch_s: float = 30.0
    hung_s: float = 8.0
    settle_s: float = 0.6


QUICK = Pace()
"""For guests that run on this machine."""

EMULATED = Pace(
    boot_s=600.0,
    arrive_s=300.0,
    move_s=300.0,
    downtime_limit_ms=1000,
    verify_s=120.0,
    abroad_s=10.0,
    watch_s=300.0,
    hung_s=120.0,
    settle_s=5.0,
)
"""For guests on lab hosts: in Bochs a trap takes 40 ms, and a death's dump seconds."""
