"""The stub's client, against a stub that we play: orders, oddities, nonsense."""

import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.translate.rsp import Stop, Stub, StubGoneError, _Packets, _unescaped, write_memory

DESCRIPTION = b"""<?xml version="1.0"?><feature name="core"><!-- <reg name="no" bitsize="64"/> -->
<reg name="rax" bitsize="64" regnum="0"/><reg name="rbx" bitsize="64"/>
<reg name="xmm0" bitsize="128" type="vec128" regnum="40"/><reg name="xmm1" bitsize="128"/>
</feature>"""
TARGET = b'<target><xi:include href="64bit.xml"/></target>'


def packet(payload: bytes) -> bytes:
    return b"$%s#%02x" % (payload, sum(payload) & 0xFF)


class Play:
    """A stub that answers from a table and notes what it was sent."""

    def __init__(self, answers=None, *, first=b"", chunk=None):
        self.answers = answers or {}
        self.first, self.chunk = first, chunk
        self.seen = []

    async def serve(self, reader, writer):
        writer.write(self.first)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                raw = await reader.readuntil(b"#")
                await reader.readexactly(2)
                noise, _, request = raw[:-1].partition(b"$")
                self.seen += [noise, request] if noise else [request]
                answer = b"+" + b"".join(packet(one) for one in self.reply(request))
                size = self.chunk or len(answer)
                for at in range(0, len(answer), size):
                    writer.write(answer[at : at + size])
                    await writer.drain()
                    if self.chunk:
                        await asyncio.sleep(0)

    def reply(self, request):
        if request.startswith(b"qSupported"):
            return [b"PacketSize=1000;qXfer:features:read+"]
        if request.startswith(b"qXfer:features:read:"):
            name, place = request.split(b":")[3:5]
            offset, size = (int(part, 16) for part in place.split(b","))
            text = TARGET if name == b"target.xml" else DESCRIPTION
            part = text[offset : offset + min(size, 100)]
            return [(b"l" if offset + len(part) >= len(text) else b"m") + part]
        found = self.answers.get(request, b"")
        return found if isinstance(found, list) else [found]


@contextlib.asynccontextmanager
async def connected(play, tmp_path):
    path = tmp_path / "s"
    server = await asyncio.start_unix_server(play.serve, str(path))
    try:
        stub = await Stub.connect(path)
        yield stub
        await stub.close()
    finally:
        server.close()


@pytest.mark.parametrize("chunk", [None, 1, 7])
@pytest.mark.parametrize("first", [b"", b"+", packet(b"T02thread:01;"), packet(b"T05") * 2])
async def test_greets_whatever_was_said_unasked(tmp_path, first, chunk):
    play = Play({b"g": b"00ff"}, first=first, chunk=chunk)
    async with connected(play, tmp_path) as stub:
        assert await stub.ask(b"g") == [b"00ff"]
        assert {"rax": 0, "rbx": 1, "xmm0": 40, "xmm1": 41}.items() <= stub.numbers.items()
        assert "no" not in stub.numbers


async def test_many_requests_in_one_write_are_answered_in_order(tmp_path):
    play = Play({b"m%x,2" % at: b"%04x" % at for at in range(40)})
    async with connected(play, tmp_path) as stub:
        answers = await stub.ask(*(b"m%x,2" % at for at in range(40)))
        assert answers == [b"%04x" % at for at in range(40)]


async def test_never_acknowledges(tmp_path):
    play = Play({b"g": b"00"})
    async with connected(play, tmp_path) as stub:
        await stub.ask(b"g", b"g")
    assert b"+" not in play.seen


async def test_answers_before_a_stop_are_passed_over(tmp_path):
    play = Play({b"P0=01": b"OK", b"vCont;c": b"T05thread:p01.02;"})
    async with connected(play, tmp_path) as stub:
        stub.go(b"P0=01", b"P0=01")
        stop = await stub.stopped()
        assert (stop.signal, stop.vcpu) == (5, 1)


async def test_a_refused_write_is_an_error(tmp_path):
    play = Play({b"P0=01": b"E22", b"vCont;c": b"T05thread:01;"})
    async with connected(play, tmp_path) as stub:
        stub.go(b"P0=01")
        with pytest.raises(StubGoneError):
            await stub.stopped()


async def test_memory_ends_where_it_is_not_mapped(tmp_path):
    play = Play({b"m1000,400": b"aa" * 0x400, b"m1400,400": b"E14", b"m1800,10": b"bb" * 16})
    async with connected(play, tmp_path) as stub:
        assert await stub.memory(0x1000, 0x810) == b"\xaa" * 0x400


async def test_monitor_commands_come_in_pieces(tmp_path):
    asked = b"qRcmd," + b"info".hex().encode()
    play = Play({asked: [b"O" + b"CPU".hex().encode(), b"O" + b"#0\n".hex().encode(), b"OK"]})
    async with connected(play, tmp_path) as stub:
        assert await stub.command("info") == "CPU#0\n"


async def test_nonsense_is_a_typed_error(tmp_path):
    play = Play({b"m0,4": b"zz", b"qRcmd,78": b"E01"})
    async with connected(play, tmp_path) as stub:
        with pytest.raises(StubGoneError):
            await stub.memory(0, 4)
        with pytest.raises(StubGoneError):
            await stub.command("x")


async def test_nobody_there(tmp_path):
    with pytest.raises(StubGoneError):
        await Stub.connect(tmp_path / "none")


async def test_a_stub_that_hangs_up(tmp_path):
    async def hang_up(reader, writer):
        await reader.read(1)
        writer.close()

    server = await asyncio.start_unix_server(hang_up, str(tmp_path / "s"))
    with pytest.raises(StubGoneError):
        await Stub.connect(tmp_path / "s")
    server.close()


@pytest.mark.parametrize(
    ("text", "signal", "vcpu"),
    [(b"T05thread:01;", 5, 0), (b"T02thread:p01.0a;", 2, 9), (b"S05", 5, 0), (b"T18", 24, 0),
     (b"T05hwbreak:;thread:02;", 5, 1)],
)  # fmt: skip
def test_stop_replies(text, signal, vcpu):
    stop = Stop.parse(text)
    assert (stop.signal, stop.vcpu) == (signal, vcpu)


@pytest.mark.parametrize("text", [b"", b"OK", b"E14", b"Tzz", b"W00", b"X09", b"00112233"])
def test_what_is_no_stop_reply(text):
    assert Stop.parse(text) is None


@given(st.binary(max_size=400), st.integers(1, 50))
@settings(max_examples=300)
def test_any_bytes_are_survived(data, size):
    packets = _Packets()
    for at in range(0, len(data), size):
        packets.data_received(data[at : at + size])
    for one in packets.ready:
        _unescaped(one)
        Stop.parse(one)


@given(st.lists(st.binary(max_size=30).filter(lambda b: not set(b) & set(b"$#}*+")), max_size=9))
def test_cutting_does_not_depend_on_how_bytes_arrive(payloads):
    stream = b"+".join(packet(payload) for payload in payloads)
    whole, single = _Packets(), _Packets()
    whole.data_received(stream)
    for byte in stream:
        single.data_received(bytes([byte]))
    assert list(whole.ready) == list(single.ready) == payloads


def test_an_endless_packet_ends_the_connection():
    packets = _Packets()
    packets.data_received(b"$" + b"a" * (2 << 20))
    assert packets.gone


def test_escapes():
    assert _unescaped(b"a}\x03b") == b"a#b"
    assert _unescaped(b"0* ") == b"0000"
    assert write_memory(0x10, b"\x01\xff") == b"M10,2:01ff"


async def test_a_report_that_comes_late_is_no_answer(tmp_path):
    """The guest is known to stand before its stub's report of that has come."""

    class Late(Play):
        def reply(self, request):
            said = super().reply(request)
            return [b"T02thread:01;", *said] if len(self.seen) > before else said

    before = 1 << 30
    play = Late({b"g": b"00ff"})
    async with connected(play, tmp_path) as stub:
        before = len(play.seen)
        await stub.settle()
        before = 1 << 30
        assert await stub.ask(b"g") == [b"00ff"]
