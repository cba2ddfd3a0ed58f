"""The judge must accept a right stream and refuse each way in which one can be wrong."""

import zlib

import pytest

from isthmus.qualification.payload.report import LINE_LIMIT, Arrival, Follower, Stream, parse
from isthmus.qualification.payload.verdict import Judge, judge

MS = 1_000_000


def sealed(number, text):
    body = f"isthmus1 {number} {text}".encode()
    return body + b" crc=%08x\n" % zlib.crc32(body)


def beat(n, mono_ms):
    return f"beat n={n} mono={mono_ms * MS} real={mono_ms * MS + 5} tsc={mono_ms * 1000}"


def tick(n, **changed):
    fields = {
        "n": n, "mono": n, "real": n, "tsc": n, "insn": 9 * n, "math": n + 1, "pages": 256 * n,
        "sums": n + 1, "usr1": n + 1, "ud2": n + 1, "int3": n + 1, "fpe": n + 1, "segv": n + 1,
        "timer": n, "disk": 0,
    } | changed  # fmt: skip
    return "tick " + " ".join(f"{key}={value}" for key, value in fields.items())


def stream(*texts):
    return [sealed(number, text) for number, text in enumerate(texts)]


START = "start kernel=6.1.0 vcpus=1 beat_ms=20 groups=sse4a,popcnt unknown_options=0"
GOOD = stream(
    START, "clocksource old=- new=tsc", beat(0, 100), tick(0), beat(1, 120), tick(1),
    "counts extrq=2 popcnt=2", beat(2, 171), tick(2), beat(3, 191),
)  # fmt: skip


def kinds(lines):
    return [fault.kind for fault in judge([b"".join(lines)]).faults]


def test_a_right_stream_is_accepted():
    verdict = judge([b"".join(GOOD)])
    assert verdict.ok
    assert (verdict.records, verdict.ticks, verdict.tests) == (10, 3, "sse4a,popcnt")
    assert verdict.instructions == {"extrq": 2, "popcnt": 2}
    assert (verdict.kernel, verdict.clocksource) == ("6.1.0", "tsc")


def test_a_hop_may_cut_a_line_anywhere():
    data = b"".join(GOOD)
    for cut in range(len(data)):
        verdict = judge([data[:cut], data[cut:]])
        heard_before = b"\n" in data[:cut]
        assert verdict.ok == heard_before  # only a process that completed no line is silent
        assert verdict.records == len(GOOD)


def test_every_flipped_bit_is_seen():
    data = b"".join(GOOD)
    for place in range(len(data) - 1):  # without its newline the last line may still be coming
        damaged = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
        assert not judge([damaged]).ok, f"byte {place}"


def test_every_lost_record_is_seen():
    for lost in range(len(GOOD) - 1):  # the last one's loss can show only later
        assert "gap" in kinds(GOOD[:lost] + GOOD[lost + 1 :])


def test_every_repeated_record_is_seen():
    for again in range(len(GOOD)):
        assert "repeat" in kinds(GOOD[: again + 1] + GOOD[again:])


def test_a_copy_that_ran_on_is_seen():
    data = [b"".join(GOOD[:8]), b"".join(GOOD[6:])]
    assert [fault.kind for fault in judge(data).faults][:1] == ["repeat"]


def test_records_in_the_wrong_order_are_seen():
    assert {"gap", "repeat"} <= set(kinds([*GOOD[:3], GOOD[4], GOOD[3], *GOOD[5:]]))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("event kind=wrong test=extrq", "wrong"),
        ("event kind=memory page=3 word=9 expected=1 got=2", "memory"),
        ("event kind=backwards clock=tsc step=-5", "backwards"),
        ("event kind=signal-lost test=ud2 expected=4 got=0", "signal-lost"),
        ("event kind=signal test=extrq signal=4", "signal"),
        ("event kind=stuck test=threads", "stuck"),
        ("event kind=disk expected=1.5 got=1.6", "disk"),
        ("event kind=cpuid leaf=1.0 register=ecx old=00000001 new=00000000", "cpuid"),
        ("event kind=cpuid leaf=one register=ecx old=00000001 new=00000000", "event"),
        ("event kind=unheard", "event"),
        ("death pid=9 signal=4 exit=-1 doing=extrq", "death"),
        (START, "restart"),
        (tick(4), "count"),
        (tick(3, math=3), "count"),
        (tick(3, ud2=3), "count"),
        (tick(3, insn=1), "count"),
        (beat(5, 200), "count"),
        ("counts extrq=1", "count"),
    ],
)
def test_what_a_record_tells(text, kind):
    assert kinds([*GOOD, sealed(len(GOOD), text)]) == [kind]


def test_an_expected_change_of_cpuid_is_only_noted():
    lines = [
        *GOOD,
        sealed(10, "event kind=cpuid leaf=80000001.0 register=ecx old=00000060 new=00000020"),
    ]
    data = b"".join(lines)
    allowed = {(0x80000001, 0, "ecx"): 0x40}
    assert judge([data], cpuid_may_lose=allowed).ok
    assert not judge([data], cpuid_may_lose={(0x80000001, 0, "ecx"): 0x20}).ok
    assert not judge([data], cpuid_may_lose={(0x80000001, 1, "ecx"): 0x40}).ok


def test_a_leap_is_a_fault_only_beyond_the_limit():
    data = b"".join([*GOOD, sealed(10, f"event kind=jump clock=realtime step={1500 * MS}")])
    assert judge([data]).ok
    assert judge([data]).notes[0].kind == "jump"
    assert judge([data], jump_limit_ms=2000).ok
    assert not judge([data], jump_limit_ms=1000).ok


def test_a_process_that_says_nothing_is_a_fault():
    assert [fault.kind for fault in judge([b"".join(GOOD), b""]).faults] == ["silent"]
    assert [fault.kind for fault in judge([]).faults] == ["silent"]


def test_figures_of_a_hop():
    before, after = b"".join(GOOD[:6]), b"".join(GOOD[6:])
    first = Stream(data=before, arrivals=(Arrival(end=len(before), at_ns=1000 * MS),))
    second = Stream(
        data=after,
        arrivals=(Arrival(end=5, at_ns=1063 * MS), Arrival(end=len(after), at_ns=1070 * MS)),
    )
    (hop,) = judge([first, second]).hops
    assert hop.guest_gap_ms == 51.0  # beats at 120 and 171 ms
    assert hop.guest_late_ms == 31.0  # less the period of 20 ms
    assert hop.real_gap_ms == 51.0
    assert hop.silence_ms == 63.0
    assert hop.spin_ms is None


def test_an_endless_line_is_one_fault_and_little_memory():
    judging = Judge()
    for _ in range(100):
        judging.feed(b"x" * LINE_LIMIT)
    judging.feed(b"\n" + b"".join(GOOD))
    verdict = judging.verdict()
    assert [fault.kind for fault in verdict.faults] == ["torn"]
    assert verdict.records == len(GOOD)


def test_many_faults_are_counted_but_not_kept():
    verdict = judge([b"rubbish\n" * 10_000])
    assert verdict.fault_count == 10_001
    assert len(verdict.faults) == 50


@pytest.mark.parametrize(
    "text",
    [
        b"isthmus2 0 beat n=0", b"isthmus1 00 beat n=0", b"isthmus1 0 Beat n=0",
        b"isthmus1 0 beat n=0 n=1", b"isthmus1 0 beat n", b"isthmus1 0 beat  n=0",
        b"isthmus1 0 beat n=\xff", b"isthmus1 -1 beat n=0", b"",
    ],
)  # fmt: skip
def test_lines_that_are_no_records(text):
    assert parse(text + b" crc=%08x" % zlib.crc32(text)) is None


def test_follower_reads_a_growing_file(tmp_path):
    path = tmp_path / "payload.log"
    follower = Follower(path)
    assert follower.poll() == b""
    path.write_bytes(GOOD[0])
    assert follower.poll() == GOOD[0]
    assert follower.poll() == b""
    with path.open("ab") as file:
        file.write(GOOD[1])
    assert follower.poll() == GOOD[1]
    arrivals = follower.stream.arrivals
    assert [arrival.end for arrival in arrivals] == [len(GOOD[0]), len(GOOD[0] + GOOD[1])]
    assert arrivals[0].at_ns < arrivals[1].at_ns
