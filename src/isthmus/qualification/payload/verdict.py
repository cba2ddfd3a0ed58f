"""The judge of a guest's whole life: no report may be lost, repeated, torn or wrong.

The streams of all hops are joined as bytes, in order, since a line that the source had half written
goes on in the destination's file.
"""

from collections.abc import Mapping, Sequence

from isthmus.qualification.payload.report import Record, parse
from isthmus.values import Value

FAULT_LIMIT = 50

CpuidChange = tuple[int, int, str]  # leaf, subleaf, register (eax … edx)


class Fault(Value, frozen=True):
    """Something that must not happen: its kind, and the evidence."""

    kind: str  # torn, gap, repeat, wrong, cpuid, death, silent
    detail: str


class HopTimes(Value, frozen=True):
    """What one hop looked like to the guest, in ms.

    ``guest_gap_ms``: by how much the beat after the hop came late on the guest's own monotonic
    clock (which QEMU stops with the guest, so this is less than the downtime).
    ``real_gap_ms``: the same
    on its realtime clock.
    """

    guest_gap_ms: float
    real_gap_ms: float


class Verdict(Value, frozen=True):
    """Whether the payload's whole stream is right, and its figures."""

    ok: bool
    records: int
    ticks: int
    faults: tuple[Fault, ...]
    hops: tuple[HopTimes, ...]
    tests: str = ""


def judge(
    streams: Sequence[bytes], *, cpuid_may_lose: Mapping[CpuidChange, int] | None = None
) -> Verdict:
    """Judge the joined streams of one guest, one for each process it ran in, oldest first.

    :param cpuid_may_lose: bits of CPUID that may come and go on the way (features that a translated
        guest's destination lacks), by leaf, subleaf and register.
    """
    faults: list[Fault] = []
    records: list[Record] = []
    starts: list[int] = []  # for each hop: how many records had begun before its stream
    rest = b""
    for index, stream in enumerate(streams):
        if index:
            starts.append(len(records))
        *lines, rest = (rest + stream).split(b"\n")
        for line in lines:
            record = parse(line)
            if record is None:
                faults.append(Fault(kind="torn", detail=repr(line[:120])))
            else:
                records.append(record)
    _check_numbers(records, faults)
    for record in records:
        _check_record(record, faults, cpuid_may_lose or {})
    if not records:
        faults.append(Fault(kind="silent", detail="the payload reported nothing"))
    first = next((record for record in records if record.kind == "hello"), None)
    period = first.integer("beat") if first else 0
    return Verdict(
        ok=not faults,
        records=len(records),
        ticks=sum(record.kind == "tick" for record in records),
        faults=tuple(faults[:FAULT_LIMIT]),
        hops=tuple(_hop_times(records, start, period) for start in starts),
        tests=first.fields.get("tests", "") if first else "",
    )


def _check_numbers(records: list[Record], faults: list[Fault]) -> None:
    expected = 0
    for record in records:
        if record.number > expected:
            faults.append(
                Fault(kind="gap", detail=f"{expected} to {record.number - 1} are missing")
            )
        elif record.number < expected:
            faults.append(Fault(kind="repeat", detail=f"{record.number} came again"))
        expected = record.number + 1


def _check_record(record: Record, faults: list[Fault], may_lose: Mapping[CpuidChange, int]) -> None:
    text = " ".join(f"{key}={value}" for key, value in record.fields.items())
    if record.kind in {"wrong", "death"}:
        faults.append(Fault(kind=record.kind, detail=text))
    elif record.kind == "cpuid":
        try:
            leaf, subleaf, old, new = (
                int(record.fields[key], 16) for key in ("leaf", "subleaf", "old", "new")
            )
        except (KeyError, ValueError):
            faults.append(Fault(kind="torn", detail=text))
            return
        allowed = may_lose.get((leaf, subleaf, record.fields.get("register", "")), 0)
        if (old ^ new) & ~allowed:
            faults.append(Fault(kind="cpuid", detail=text))


def _hop_times(records: list[Record], start: int, period_ms: int) -> HopTimes:
    before = next((r for r in reversed(records[:start]) if r.kind == "beat"), None)
    after = next((r for r in records[start:] if r.kind == "beat"), None)
    if before is None or after is None:
        return HopTimes(guest_gap_ms=0.0, real_gap_ms=0.0)

    def late(clock: str) -> float:
        step = (after.integer(clock) - before.integer(clock)) / 1e6
        return round(max(0.0, step - period_ms), 3)

    return HopTimes(guest_gap_ms=late("mono"), real_gap_ms=late("real"))
