"""The judge of a guest's whole life: no report may be lost, repeated, torn or wrong.

The streams of all processes that the guest ran in are joined as bytes, in the order of the hops: a
line that the source had half written goes on in the destination's file.
"""

import itertools
from collections.abc import Mapping, Sequence

from isthmus.qualification.payload.report import (
    LINE_LIMIT,
    STREAM_LIMIT,
    Arrival,
    Record,
    Stream,
    parse,
)
from isthmus.values import Value

FAULT_LIMIT = 50
"""Faults (and notes) that are kept in words; all are counted."""

WINDOW_MS = 1000.0
"""How far around a hop its gap and silence are looked for."""

CpuidRegister = tuple[int, int, str]
"""Leaf, subleaf, register (``eax`` … ``edx``)."""

_NEVER = frozenset(
    {"wrong", "memory", "stuck", "signal", "signal-lost", "backwards", "disk", "disk-error"}
)
_COUNTERS = (
    "insn", "math", "pages", "sums", "usr1", "ud2", "int3", "fpe", "segv", "timer", "disk",
)  # fmt: skip
_EVERY_TICK = ("math", "sums", "usr1", "ud2", "int3", "fpe", "segv")


class Fault(Value, frozen=True):
    """Something that must not happen: its kind (``docs/payload.md``), and the evidence."""

    kind: str
    detail: str


class HopTimes(Value, frozen=True):
    """What one hop looked like, in ms; None where there is nothing to measure it by.

    ``guest_gap_ms``: the largest step of the guest's monotonic clock between two beats next to each
    other, within one second around the hop; it holds one period of the beat, so it is an upper
    bound of what the guest noticed.  ``guest_late_ms``: the same less that period, a lower bound.
    ``real_gap_ms``: the largest such step of its realtime clock.  ``spin_ms``: the largest step
    that the spinning watcher saw in its TSC.  ``silence_ms``: the longest time in which nothing
    arrived at the host.

    QEMU stops a guest's clocks with the guest, so the first four may be far below the downtime;
    ``silence_ms`` is not.
    """

    guest_gap_ms: float | None = None
    guest_late_ms: float | None = None
    real_gap_ms: float | None = None
    spin_ms: float | None = None
    silence_ms: float | None = None


class Verdict(Value, frozen=True):
    """Whether the payload's whole stream is right, and its figures.

    ``faults`` holds the first of them in words and ``fault_count`` their number; ``notes`` what was
    surprising and allowed.  ``tests`` names the groups of instructions that ran; ``instructions``
    how often each did.
    """

    ok: bool
    records: int
    ticks: int
    faults: tuple[Fault, ...]
    fault_count: int
    notes: tuple[Fault, ...]
    hops: tuple[HopTimes, ...]
    tests: str = ""
    instructions: Mapping[str, int] = {}
    kernel: str = ""
    clocksource: str = ""


class _Beat(Value, frozen=True):
    mono_ns: int
    real_ns: int
    tsc: int
    spin: int
    stream: int  # in which its line ended


class Judge:
    """Judges a stream part by part; ask :meth:`verdict` at any time.

    :param cpuid_may_lose: bits of CPUID that may come and go on the way (features that a translated
        guest's destination lacks), by leaf, subleaf and register.
    :param jump_limit_ms: a clock that leaps forward by more is a fault; None: only a note, since a
        host that is short of CPU time makes the clocks of an emulated guest leap, too.
    """

    def __init__(
        self,
        *,
        cpuid_may_lose: Mapping[CpuidRegister, int] | None = None,
        jump_limit_ms: float | None = None,
    ) -> None:
        self._may_lose = cpuid_may_lose or {}
        self._jump_limit_ms = jump_limit_ms
        self._faults: list[Fault] = []
        self._fault_count = 0
        self._notes: list[Fault] = []
        self._rest = b""
        self._overlong = False
        self._size = 0
        self._stream = 0
        self._expected = 0
        self._records = 0
        self._heard = {0: False}  # by stream: whether a line ended in it
        self._clocksource = ""
        self._last: dict[str, Record] = {}
        self._beats: list[_Beat] = []
        self._arrivals: list[tuple[int, int]] = []  # (stream, ns)
        self._start: Record | None = None
        self._instructions: dict[str, int] = {}

    def hop(self) -> None:
        """What is fed from now on comes from the next process."""
        self._stream += 1
        self._heard[self._stream] = False

    def feed(self, data: bytes, *, at_ns: int | None = None) -> None:
        """Take the next bytes, seen at ``at_ns`` on the host's monotonic clock."""
        self._size += len(data)
        if self._size > STREAM_LIMIT:
            if self._size - len(data) <= STREAM_LIMIT:
                self._fault("flood", f"more than {STREAM_LIMIT} bytes of reports")
            return
        if at_ns is not None and data:
            self._arrivals.append((self._stream, at_ns))
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self._overlong:
                self._overlong = False  # the end of a line that was told of already
            else:
                self._line(line)
        if len(self._rest) > LINE_LIMIT:
            if not self._overlong:
                self._fault("torn", f"a line of more than {LINE_LIMIT} bytes: {self._rest[:80]!r}")
            self._overlong = True
            self._rest = b""

    def verdict(self) -> Verdict:
        """The judgement of all that was fed; an unfinished last line is left out of it."""
        faults = list(self._faults)
        silent = [number for number, heard in self._heard.items() if not heard]
        faults += [
            Fault(kind="silent", detail=f"nothing was reported from process {number}")
            for number in silent
        ]
        start = self._start.fields if self._start else {}
        return Verdict(
            ok=not faults,
            records=self._records,
            ticks=self._last["tick"].integer("n") + 1 if "tick" in self._last else 0,
            faults=tuple(faults[:FAULT_LIMIT]),
            fault_count=self._fault_count + len(silent),
            notes=tuple(self._notes),
            hops=tuple(self._hop_times(number) for number in range(1, self._stream + 1)),
            tests=start.get("groups", ""),
            instructions=dict(self._instructions),
            kernel=start.get("kernel", ""),
            clocksource=self._clocksource,
        )

    def _fault(self, kind: str, detail: str) -> None:
        self._fault_count += 1
        if len(self._faults) < FAULT_LIMIT:
            self._faults.append(Fault(kind=kind, detail=detail))

    def _note(self, kind: str, detail: str) -> None:
        if len(self._notes) < FAULT_LIMIT:
            self._notes.append(Fault(kind=kind, detail=detail))

    def _line(self, line: bytes) -> None:
        record = parse(line)
        if record is None:
            self._fault("torn", repr(line[:120]))
            return
        self._records += 1
        self._heard[self._stream] = True
        if record.number > self._expected:
            self._fault("gap", f"{self._expected} to {record.number - 1} are missing")
        elif record.number < self._expected:
            self._fault("repeat", f"{record.number} came again, {self._expected} was next")
        self._expected = record.number + 1
        match record.kind:
            case "start":
                self._started(record)
            case "tick":
                self._ticked(record)
            case "beat":
                self._counted_on(record)
                self._beats.append(_beat(record, self._stream))
            case "counts":
                self._counts(record)
            case "event":
                self._event(record)
            case "clocksource":
                self._clocksource = record.fields.get("new", "")
                if record.fields.get("old") != "-":
                    self._note("clocksource", record.text())
            case "death":
                self._fault("death", record.text())
            case _:  # cpuid, end, and what a later payload may add
                pass
        self._last[record.kind] = record

    def _started(self, record: Record) -> None:
        if self._start is not None:
            self._fault("restart", f"record {record.number} is a second start")
        self._start = record
        if record.integer("unknown_options"):
            self._note(
                "options", f"{record.integer('unknown_options')} options were not understood"
            )

    def _ticked(self, record: Record) -> None:
        before = self._last.get("tick")
        self._counted_on(record)
        for key in _COUNTERS:
            now = record.integer(key)
            then = before.integer(key) if before else 0
            if now < then or (key in _EVERY_TICK and now == then):
                self._fault("count", f"tick {record.integer('n')}: {key} went from {then} to {now}")

    def _counted_on(self, record: Record) -> None:
        """A kind's own number ``n`` rises by one as well."""
        before = self._last.get(record.kind)
        wanted = before.integer("n") + 1 if before else 0
        if record.integer("n") != wanted:
            self._fault("count", f"{record.kind} {wanted} was next: {record.text()}")

    def _counts(self, record: Record) -> None:
        for name in record.fields:
            count = record.integer(name)
            if count < self._instructions.get(name, 0):
                self._fault("count", f"{name} went back to {count}")
            self._instructions[name] = count

    def _event(self, record: Record) -> None:
        kind = record.fields.get("kind", "")
        if kind == "cpuid":
            self._cpuid(record)
        elif kind == "jump":
            limit = self._jump_limit_ms
            over = limit is not None and record.integer("step") > limit * 1e6
            (self._fault if over else self._note)("jump", record.text())
        elif kind == "approximation":
            self._note(kind, record.text())
        else:
            self._fault(kind if kind in _NEVER else "event", record.text())

    def _cpuid(self, record: Record) -> None:
        try:
            leaf, subleaf = (int(part, 16) for part in record.fields["leaf"].split("."))
            changed = int(record.fields["old"], 16) ^ int(record.fields["new"], 16)
            register = record.fields["register"]
        except (KeyError, ValueError):
            self._fault("event", record.text())
            return
        if changed & ~self._may_lose.get((leaf, subleaf, register), 0):
            self._fault("cpuid", record.text())
        else:
            self._note("cpuid", record.text())

    def _hop_times(self, number: int) -> HopTimes:
        """The figures of the hop from process ``number - 1`` to ``number``."""
        silence = _largest_step(_around(self._arrivals, number))
        near = [beat for beat in self._beats if beat.stream in {number - 1, number}]
        window = _around([(beat.stream, beat.mono_ns) for beat in near], number)
        gap = _largest_step(window)
        if gap is None:
            return HopTimes(silence_ms=silence)
        inside = [beat for beat in near if window[0] <= beat.mono_ns <= window[-1]]
        period = self._start.integer("beat_ms") if self._start else 0
        spins = [beat.spin for beat in inside]
        elapsed_ms = (inside[-1].mono_ns - inside[0].mono_ns) / 1e6
        rate = (inside[-1].tsc - inside[0].tsc) / elapsed_ms if elapsed_ms > 0 else 0.0
        return HopTimes(
            guest_gap_ms=gap,
            guest_late_ms=round(max(0.0, gap - period), 3),
            real_gap_ms=_largest_step([beat.real_ns for beat in inside]),
            spin_ms=round(max(spins) / rate, 3) if max(spins) > 0 and rate > 0 else None,
            silence_ms=silence,
        )


def judge(
    streams: Sequence[bytes | Stream],
    *,
    cpuid_may_lose: Mapping[CpuidRegister, int] | None = None,
    jump_limit_ms: float | None = None,
) -> Verdict:
    """Judge the streams of one guest, one for each process it ran in, oldest first.

    For the parameters see :class:`Judge`.
    """
    judging = Judge(cpuid_may_lose=cpuid_may_lose, jump_limit_ms=jump_limit_ms)
    for index, stream in enumerate(streams):
        if index:
            judging.hop()
        if isinstance(stream, bytes):
            judging.feed(stream)
            continue
        begin = 0
        for arrival in stream.arrivals or (Arrival(end=len(stream.data), at_ns=0),):
            part = stream.data[begin : arrival.end]
            judging.feed(part, at_ns=arrival.at_ns if stream.arrivals else None)
            begin = arrival.end
        judging.feed(stream.data[begin:])
    return judging.verdict()


def _beat(record: Record, stream: int) -> _Beat:
    return _Beat(
        mono_ns=record.integer("mono"),
        real_ns=record.integer("real"),
        tsc=record.integer("tsc"),
        spin=record.integer("spin"),
        stream=stream,
    )


def _around(points: Sequence[tuple[int, int]], number: int) -> list[int]:
    """The times (ns) next to hop ``number``: of both its processes, within the window."""
    before = [at for stream, at in points if stream == number - 1]
    after = [at for stream, at in points if stream == number]
    if not before or not after:
        return []
    reach = int(WINDOW_MS * 1e6)
    return [at for at in before if at >= before[-1] - reach] + [
        at for at in after if at <= after[0] + reach
    ]


def _largest_step(times_ns: Sequence[int]) -> float | None:
    """The largest difference between neighbours, in ms; None with fewer than two."""
    steps = [after - before for before, after in itertools.pairwise(times_ns)]
    return round(max(steps) / 1e6, 3) if steps else None
