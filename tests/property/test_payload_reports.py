"""A guest may write anything; the judge answers with faults, never with an exception."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from isthmus.qualification.payload.report import parse
from isthmus.qualification.payload.verdict import Judge, judge

words = st.sampled_from(
    [
        "start", "tick", "beat", "event", "counts", "death", "clocksource", "n=0", "n=-9", "n=",
        "kind=cpuid", "leaf=1.0", "leaf=1.0.0", "leaf=.", "old=zz", "old=1", "new=1",
        "register=eax",
        "mono=99999999999999999999", "mono=-1", "tsc=0", "spin=5", "beat_ms=20", "kind=jump",
        "step=9", "old=-", "new=tsc", "extrq=3", "extrq=1",
    ]
)  # fmt: skip


@st.composite
def lines(draw):
    text = f"isthmus1 {draw(st.integers(0, 30))} {' '.join(draw(st.lists(words, max_size=6)))}"
    data = text.encode()
    return data + b" crc=%08x\n" % zlib.crc32(data)


streams = st.lists(st.one_of(lines(), st.binary(max_size=80)), max_size=30).map(b"".join)


@given(st.lists(streams, max_size=4))
def test_any_stream_gets_a_verdict(parts):
    verdict = judge(parts)
    assert verdict.ok == (not verdict.faults)
    assert verdict.ok == (verdict.fault_count == 0)
    assert len(verdict.hops) == max(0, len(parts) - 1)


@given(st.binary(max_size=2000))
def test_any_line_is_a_record_or_none(line):
    record = parse(line)
    assert record is None or line.startswith(b"isthmus1 ")


@given(streams, st.lists(st.integers(0, 3000), max_size=20))
def test_how_bytes_arrive_changes_nothing(data, cuts):
    whole = judge([data])
    judging = Judge()
    last = 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        judging.feed(data[last:cut], at_ns=last)
        last = cut
    judging.feed(data[last:])
    assert judging.verdict() == whole
