"""What the demo found out, as values: one for a move, one for an act, one for the whole."""

from collections.abc import Mapping

from isthmus.values import Value

SCHEMA_VERSION = 1


class MoveResult(Value, frozen=True):
    """One move: times in ms, bytes on the wire.

    ``downtime_ms`` as QEMU measures it at the source, ``stopped_ms`` between QEMU's STOP at the
    source and RESUME at the destination, ``guest_gap_ms`` what the payload saw on its own clock
    around the move, ``silence_ms`` how long nothing came from it.  ``translated`` counts the
    instructions done for the guest on this destination, by mnemonic.
    """

    number: int
    source: str
    destination: str
    total_ms: float
    downtime_ms: float
    stopped_ms: float | None = None
    guest_gap_ms: float | None = None
    silence_ms: float | None = None
    moved_bytes: int = 0
    translated: Mapping[str, int] = {}


class ActResult(Value, frozen=True):
    """One act: whether it went as it must, what happened, the evidence.

    ``commands`` are the exact QEMU command lines by host, ``console`` an excerpt of the guest's.
    """

    name: str
    title: str
    ok: bool
    outcome: str
    explanation: str = ""
    moves: tuple[MoveResult, ...] = ()
    console: tuple[str, ...] = ()
    commands: Mapping[str, str] = {}
    faults: tuple[str, ...] = ()
    records: int = 0
    seconds: float = 0.0


class DemoResult(Value, frozen=True):
    """The whole demo."""

    source: str
    destination: str
    engine: str
    engine_reason: str
    qemu: str
    kernel: str
    ok: bool
    only_source: tuple[str, ...]
    only_destination: tuple[str, ...]
    level: str
    level_reasons: tuple[str, ...]
    acts: tuple[ActResult, ...]
    seconds: float
    schema: int = SCHEMA_VERSION
