"""Any valid Xen stream comes out as it went in; with rules only the reported fields differ."""

import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.qualification.lab import xen_stream as made
from isthmus.translate.xen import transport
from isthmus.translate.xen.fault import StreamError
from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.report import Report
from isthmus.translate.xen.rules import chosen

AMD = chosen(rules(), "AuthenticAMD")
TYPES_WITH_DATA = [0, 1, 2, 3, 4, 9, 10, 11, 12]
TYPES_WITHOUT = [13, 14, 15]

words = st.integers(0, 2**64 - 1)
blobs = st.binary(max_size=64)


@st.composite
def page_records(draw):
    types = draw(st.lists(st.sampled_from(TYPES_WITH_DATA + TYPES_WITHOUT), min_size=1, max_size=6))
    pfns = [kind << 60 | draw(st.integers(0, 2**52 - 1)) for kind in types]
    fill = draw(st.binary(min_size=1, max_size=3))
    data = (fill * made.PAGE)[: made.PAGE] * sum(kind in TYPES_WITH_DATA for kind in types)
    return made.page_data(pfns, data)


@st.composite
def pv_records(draw):
    number = draw(st.integers(0, 40))
    return draw(
        st.one_of(
            st.just(made.record(4, made.vcpu(number, bytes(5168)))),
            st.builds(
                lambda caps, ctl, words: made.extended(number, caps, ext_ctl=ctl, words=words),
                words, words, st.integers(0, 4),
            ),
            blobs.map(lambda blob: made.record(6, made.vcpu(number, bytes(16) + blob))),
            st.integers(0, 4).map(lambda n: made.record(12, made.vcpu(number, bytes(16 * n)))),
            st.just(made.record(5, made.vcpu(number, b""))),
            st.just(made.record(7, bytes(made.PAGE))),
        )
    )  # fmt: skip


any_records = st.one_of(
    st.tuples(st.integers(0x80000000, 0xFFFFFFFF), blobs).map(lambda pair: made.record(*pair)),
    blobs.map(lambda blob: made.record(11, blob)),
    words.map(lambda word: made.record(8, struct.pack("<IIQII", 0, 1, word, 0, 0))),
    st.just(made.record(13)),
    st.integers(1, 5).map(lambda n: made.record(17, bytes(24 * n))),
    st.integers(1, 5).map(lambda n: made.record(18, bytes(16 * n))),
    page_records(),
)


@st.composite
def images(draw):
    if draw(st.booleans()):
        body = draw(st.lists(st.one_of(any_records, pv_records()), max_size=12))
        return made.libxc(
            1, made.record(2, struct.pack("<BB6x", 8, 4)), made.record(16), *body, made.record(0)
        )
    context = st.builds(
        lambda caps, vcpus, ctl: made.hvm_context(caps, vcpus, ext_ctl=ctl),
        words, st.integers(0, 3), words,
    )  # fmt: skip
    body = draw(st.lists(st.one_of(any_records, context), max_size=8))
    return made.libxc(2, made.record(16), *body, made.record(0))


emulators = st.one_of(
    st.just(made.emulator_records()),
    blobs.map(lambda blob: made.record(3, struct.pack("<II", 1, 0) + blob)),
    st.tuples(st.integers(0x80000000, 0xFFFFFFFF), blobs).map(lambda pair: made.record(*pair)),
)


@st.composite
def streams(draw):
    image = draw(images())
    form = draw(st.sampled_from(["libxc", "libxl", "xl"]))
    if form == "libxc":
        return image
    inner = made.libxl(
        made.record(1), image, *draw(st.lists(emulators, max_size=3)), made.record(0)
    )
    return inner if form == "libxl" else made.xl_header(draw(blobs)) + inner


@given(streams(), st.binary(max_size=60))
def test_without_rules_nothing_changes(data, behind):
    channel = made.InMemory(data + behind)
    summary = transport.filtered(channel, (), Report(None), to="")
    assert channel.out == data + behind
    assert summary.changes == 0


@given(streams())
def test_with_rules_only_reported_fields_change_and_only_once(data):
    channel, report = made.InMemory(data), Report(None)
    transport.filtered(channel, AMD, report, to="AuthenticAMD")
    out = bytes(channel.out)
    for change in report.changes:
        assert change.before != change.after
    expected = bytearray(data)
    for change in report.changes:
        expected[change.offset : change.offset + 8] = change.after.to_bytes(8, "little")
    assert out == expected
    again, second = made.InMemory(out), Report(None)
    transport.filtered(again, AMD, second, to="AuthenticAMD")
    assert again.out == out
    assert not second.changes


@given(streams(), st.data())
def test_a_cut_anywhere_is_refused(data, draw):
    cut = draw.draw(st.integers(0, len(data) - 1))
    channel = made.InMemory(data[:cut])
    try:
        transport.filtered(channel, (), Report(None), to="")
    except StreamError as error:
        assert "before its END" in error.reason
    else:
        raise AssertionError("a stream without its END was taken for whole")
    assert data.startswith(bytes(channel.out)), "what went on is what had come"


@settings(max_examples=25, deadline=None)
@given(streams(), st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_how_bytes_arrive_through_pipes_changes_nothing(data, steps):
    (source, feed), (drain, sink) = os.pipe(), os.pipe()

    def write() -> None:
        at, turn = 0, 0
        while at < len(data):
            at += os.write(feed, data[at : at + steps[turn % len(steps)]])
            turn += 1
        os.close(feed)

    def read() -> bytes:
        with os.fdopen(drain, "rb") as file:
            return file.read()

    with ThreadPoolExecutor() as pool:
        writer = threading.Thread(target=write)
        writer.start()
        out = pool.submit(read)
        transport.filtered(transport.Pump(source, sink), (), Report(None), to="")
        os.close(sink)
        writer.join()
        os.close(source)
        assert out.result() == data
