"""What the demo found out, as values: one for a move, one for an act, one for the whole.

All times named ``…_s`` are seconds since the demo began, so that the acts lie on one time line.
"""

import enum
import statistics
from collections.abc import Mapping, Sequence

from isthmus.divergence.finding import Finding
from isthmus.values import Value

SCHEMA_VERSION = 1


class ActName(enum.StrEnum):
    """The three acts, in their order."""

    WITHOUT = "without"
    LEVELLED = "levelled"
    TRANSLATED = "translated"


TITLES = {
    ActName.WITHOUT: "Without Isthmus",
    ActName.LEVELLED: "Levelled",
    ActName.TRANSLATED: "Translated",
}


class Outcome(enum.StrEnum):
    """How an act ended for its guest."""

    LIVED = "lived"
    PANIC = "kernel-panic"
    OOPS = "kernel-oops"
    KILLED = "program-killed"
    WRONG = "wrong-answers"
    HUNG = "hung"
    NOT_MOVED = "not-moved"  # QEMU or the move itself failed, the guest was not hurt
    REFUSED = "refused"  # preflight


FAILED_IN_GUEST = frozenset(
    {Outcome.PANIC, Outcome.OOPS, Outcome.KILLED, Outcome.WRONG, Outcome.HUNG}
)
"""The ends that act one is there to show."""


class MoveResult(Value, frozen=True):
    """One move: times in ms, bytes on the wire.

    ``downtime_ms`` is what QEMU measures at the source; ``stopped_ms`` lies between QEMU's STOP at
    the source and RESUME at the destination.  ``guest_gap_ms`` is the largest step the payload saw
    on its own clock around the move, one period of its beat included; ``silence_ms`` is how long
    nothing came from it.  ``translated`` counts the instructions done for the guest at this
    destination, by mnemonic, at ``us_per_instruction`` on average.
    """

    number: int
    source: str
    destination: str
    begun_s: float
    total_ms: float
    downtime_ms: float
    stopped_ms: float | None = None
    guest_gap_ms: float | None = None
    silence_ms: float | None = None
    moved_bytes: int = 0
    translated: Mapping[str, int] = {}
    us_per_instruction: float | None = None


class Stay(Value, frozen=True):
    """Where the guest was, and from when to when."""

    host: str
    begun_s: float
    ended_s: float


class Command(Value, frozen=True):
    """The exact command line of a QEMU, and the host that it plays."""

    host: str
    arguments: tuple[str, ...]


class ActResult(Value, frozen=True):
    """One act: whether it went as it must, what happened, the evidence.

    ``headline`` says in one sentence what happened and ``explanation`` why.  ``console`` is an
    excerpt of the guest's console, made safe for a terminal.  ``faults`` are the payload's, in
    words; ``records`` counts its reports and ``instructions`` what it executed.  ``findings`` are
    preflight's.
    """

    name: ActName
    ok: bool
    outcome: Outcome
    headline: str
    explanation: str = ""
    moves: tuple[MoveResult, ...] = ()
    stays: tuple[Stay, ...] = ()
    console: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()
    faults: tuple[str, ...] = ()
    records: int = 0
    instructions: Mapping[str, int] = {}
    findings: tuple[Finding, ...] = ()
    begun_s: float = 0.0
    ended_s: float = 0.0

    @property
    def title(self) -> str:
        """The act's name for people."""
        return TITLES[self.name]


class HostFacts(Value, frozen=True):
    """One of the two hosts: its model, its maker, and the features that the other lacks."""

    name: str
    vendor: str
    brand: str
    only: tuple[str, ...]


class DemoResult(Value, frozen=True):
    """The whole demo.

    ``setup_s`` is how long finding the engine and building the guest image took; ``ok`` whether
    every act went as it must.  ``began`` is the time of day (ISO 8601, UTC).
    """

    ok: bool
    isthmus: str
    began: str
    source: HostFacts
    destination: HostFacts
    engine: str
    engine_reason: str
    qemu: str
    kernel: str
    level: str
    level_reasons: tuple[str, ...]
    acts: tuple[ActResult, ...]
    setup_s: float
    seconds: float
    schema: int = SCHEMA_VERSION


class Spread(Value, frozen=True):
    """Least, median and greatest of some figures."""

    least: float
    median: float
    greatest: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """The spread of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(least=min(known), median=statistics.median(known), greatest=max(known))
