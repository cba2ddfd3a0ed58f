"""Results of a demo, as the acts give them, for the tests of what shows them."""

from isthmus.divergence.finding import Finding, Severity
from isthmus.qualification.demo.result import (
    ActName,
    ActResult,
    Command,
    DemoResult,
    HostFacts,
    MoveResult,
    Outcome,
    Stay,
)

PANIC = (
    "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
    "RIP: 0010:read_tsc+0x0/0x20",
    "Code: 66 2e 0f 1f 84 00 00 00 00 00 <0f> 01 f9 66 90 48 c1 e2 20 48 09 d0",
    "Call Trace:",
    "RIP: 0010:native_safe_halt+0xb/0x10",
    "Code: 13 5f 00 fb f4 <c3> cc cc",
    "invalid opcode: 0000 [#2] PREEMPT SMP NOPTI",
    "Kernel panic - not syncing: Fatal exception in interrupt",
)


def move(number: int = 1, **changes: object) -> MoveResult:
    """A move of 9 ms downtime; there when the number is odd, back when it is even."""
    source, destination = ("phenom", "Penryn")[:: 1 if number % 2 else -1]
    fields: dict[str, object] = {
        "number": number, "source": source, "destination": destination,
        "begun_s": float(number), "total_ms": 120.0, "downtime_ms": 9.0, "stopped_ms": 11.0,
        "guest_gap_ms": 24.0, "silence_ms": 30.0, "moved_bytes": 140 << 20,
    }  # fmt: skip
    return MoveResult(**fields | changes)


def without(**changes: object) -> ActResult:
    """Act one, ended by a panic."""
    fields: dict[str, object] = {
        "name": ActName.WITHOUT, "ok": True, "outcome": Outcome.PANIC,
        "headline": PANIC[-1], "explanation": "It died at RDTSCP.", "console": PANIC,
        "moves": (move(guest_gap_ms=None, stopped_ms=None, silence_ms=None),),
        "stays": (Stay(host="phenom", begun_s=0.0, ended_s=4.0),
                  Stay(host="Penryn", begun_s=4.0, ended_s=6.0)),
        "commands": (Command(host="phenom", arguments=("qemu", "-cpu", "phenom")),),
        "begun_s": 0.0, "ended_s": 6.0,
    }  # fmt: skip
    return ActResult(**fields | changes)


def levelled(count: int = 10, **changes: object) -> ActResult:
    """Act two with ``count`` moves."""
    fields: dict[str, object] = {
        "name": ActName.LEVELLED, "ok": True, "outcome": Outcome.LIVED,
        "headline": f"alive and correct after {count} moves",
        "moves": tuple(move(n, downtime_ms=5.0 + n % 7) for n in range(1, count + 1)),
        "stays": (Stay(host="phenom", begun_s=6.0, ended_s=20.0),),
        "begun_s": 6.0, "ended_s": 20.0, "records": 700,
    }  # fmt: skip
    return ActResult(**fields | changes)


def translated(**changes: object) -> ActResult:
    """Act three: there, translated, and home."""
    fields: dict[str, object] = {
        "name": ActName.TRANSLATED, "ok": True, "outcome": Outcome.LIVED,
        "headline": "alive and correct there and back",
        "moves": (move(1, translated={"EXTRQ": 14, "RDTSCP": 4410}, us_per_instruction=447.0),
                  move(2)),
        "findings": (Finding(rule="r", severity=Severity.TRANSLATE, subject="sse4a",
                             notice="n", remedy="m", source="s", evidence="e"),),
        "begun_s": 20.0, "ended_s": 30.0,
    }  # fmt: skip
    return ActResult(**fields | changes)


def result(*acts: ActResult, **changes: object) -> DemoResult:
    """A whole demo of these acts, all three by default."""
    performed = acts or (without(), levelled(), translated())
    fields: dict[str, object] = {
        "ok": all(act.ok for act in performed), "isthmus": "0.1.0",
        "began": "2026-01-02T03:04:05+00:00",
        "source": HostFacts(name="phenom", vendor="AuthenticAMD", brand="AMD Phenom(tm)",
                            only=("rdtscp", "sse4a")),
        "destination": HostFacts(name="Penryn", vendor="GenuineIntel", brand="Intel Core 2",
                                 only=("ssse3",)),
        "engine": "tcg", "engine_reason": "KVM is not usable here", "qemu": "7.2.22",
        "kernel": "6.1.0-1-cloud-amd64", "level": "kvm64-v1,enforce",
        "level_reasons": ("a reason",), "acts": performed, "setup_s": 2.0, "seconds": 30.0,
    }  # fmt: skip
    return DemoResult(**fields | changes)
