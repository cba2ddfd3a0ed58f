"""What the translator counts: by instruction, by place, by process, and how much time it takes.

A guest decides how many different sites and processes there are, so those counters have a bound.
"""

import time
from collections import Counter, deque
from statistics import median

import msgspec

from isthmus.values import Value

KEYS = 1024  # different sites, or processes, that are counted at once
SHOWN = 50  # how many of them a status names: it has to fit a line of the service's protocol
RECENT_S = 5
SAMPLES = 5  # measured stops whose median counts
SAMPLE_EVERY = 1024  # traps


class TranslatorStatus(Value, frozen=True):
    """The translator's counters since it was started.

    ``translated`` by mnemonic; ``traps``: stops at the guest's #UD entry, each of which may have
    done several instructions; ``passed``: #UDs that were the guest's own affair; ``faulted``:
    instructions of ours that raised another exception, as they would have on their own CPU;
    ``spurious``: stops without a #UD; ``us_per_instruction``: mean time from stop to resume in µs;
    ``refused``: by family, instructions that are known and that no translator does: the guest got
    its #UD;
    ``lacking``: instructions that are known and could not be done, since no stub shows YMM's upper
    halves: the guest got its #UD;
    ``standing``: signal number of a stop that somebody else made and we do not answer, else 0;
    ``sites``: instructions by the address (hexadecimal) of the trap that did them, ``processes``:
    by the page tables in force (CR3, hexadecimal); the busiest of each, see :class:`Busiest`;
    ``rate_hz``: translated instructions a second and ``busy_share``: share of time in which the
    guest stood, 0 to 1, for any trap, over the last 5 s; ``busy_s``: that time since its start.
    In them is ``stop_us`` for each trap: what QEMU itself takes to resume and to stop, in µs, as
    measured now and then by a single step (0: not yet).
    ``entry``: address of the guest's #UD handler (hexadecimal), ``since``: when the translator was
    started, in Unix seconds.
    """

    armed: bool
    running: bool
    traps: int
    translated: dict[str, int]
    passed: int
    us_per_instruction: float
    problem: str = ""
    faulted: int = 0
    spurious: int = 0
    standing: int = 0
    lacking: dict[str, int] = msgspec.field(default_factory=dict)
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    sites: dict[str, int] = msgspec.field(default_factory=dict)
    processes: dict[str, int] = msgspec.field(default_factory=dict)
    rate_hz: float = 0.0
    busy_share: float = 0.0
    busy_s: float = 0.0
    stop_us: float = 0.0
    entry: str = ""
    since: float = 0.0


class Busiest:
    """Counts by address, of which only so many are kept: where room ends, the rarest half goes."""

    def __init__(self, room: int = KEYS) -> None:
        self._room = room
        self._counts: Counter[int] = Counter()

    def add(self, key: int, count: int) -> None:
        """Count for ``key``."""
        if key not in self._counts and len(self._counts) >= self._room:
            self._counts = Counter(dict(self._counts.most_common(self._room // 2)))
        self._counts[key] += count

    def __len__(self) -> int:
        return len(self._counts)

    def shown(self, most: int = SHOWN) -> dict[str, int]:
        """The highest counts, keys in hexadecimal."""
        return {f"{key:#x}": count for key, count in self._counts.most_common(most)}


class Tally:
    """All counters of one translator."""

    def __init__(self) -> None:
        self.traps = 0
        self.translated: Counter[str] = Counter()
        self.lacking: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.passed = 0
        self.faulted = 0
        self.spurious = 0
        self.sites = Busiest()
        self.processes = Busiest()
        self._spent_ns = 0
        self._busy_ns = 0
        self._stops_ns: deque[int] = deque(maxlen=SAMPLES)
        self._counted = 0
        self._begun = time.monotonic()
        self.since = time.time()
        self._recent: deque[tuple[int, list[int]]] = deque(maxlen=RECENT_S + 1)

    def done(self, mnemonics: list[str], site: int, process: int) -> None:
        """Instructions were done for one trap."""
        for mnemonic in mnemonics:
            self.translated[mnemonic] += 1
        self.sites.add(site, len(mnemonics))
        self.processes.add(process, len(mnemonics))
        self._counted += len(mnemonics)

    @property
    def wants_stop(self) -> bool:
        """Whether to measure, with this trap, what QEMU takes to resume and to stop."""
        return len(self._stops_ns) < SAMPLES or self.traps % SAMPLE_EVERY == 0

    def stop(self, nanoseconds: int) -> None:
        """A single step took so long: to resume, one instruction, and to stop and to tell us."""
        self._stops_ns.append(nanoseconds)

    @property
    def stop_ns(self) -> int:
        """What QEMU itself takes for a stop, which no clock of ours sees; 0 if not yet known."""
        return int(median(self._stops_ns)) if self._stops_ns else 0

    def spent(self, nanoseconds: int, *, translated: bool = True) -> None:
        """A trap took so long, from when we heard of it to when we let the guest go."""
        if translated:
            self._spent_ns += nanoseconds
        bucket = self._bucket()
        bucket[0] += self._counted
        bucket[1] += nanoseconds + self.stop_ns
        self._busy_ns += nanoseconds + self.stop_ns
        self._counted = 0

    @property
    def busy_s(self) -> float:
        """For how long the guest has stood in traps, in s."""
        return self._busy_ns / 1e9

    @property
    def us_per_instruction(self) -> float:
        """Mean time a translated instruction took, in µs, without QEMU's own share."""
        count = sum(self.translated.values())
        return self._spent_ns / 1000 / count if count else 0.0

    def recent(self) -> tuple[float, float]:
        """Instructions a second, and the share of time they took, over the last seconds."""
        now = time.monotonic()
        since = max(self._begun, float(int(now) - RECENT_S))
        buckets = [bucket for second, bucket in self._recent if second >= int(now) - RECENT_S]
        window = max(now - since, 1e-3)
        count, spent = (sum(bucket[which] for bucket in buckets) for which in (0, 1))
        return count / window, min(1.0, spent / 1e9 / window)

    def _bucket(self) -> list[int]:
        """This second's count and nanoseconds."""
        second = int(time.monotonic())
        if not self._recent or self._recent[-1][0] != second:
            self._recent.append((second, [0, 0]))
        return self._recent[-1][1]
