"""A small client of QEMU's debug stub: the GDB remote serial protocol over a UNIX socket.

What QEMU's stub is like, found by experiment and in its source (7.2 and 10.0: gdbstub):

- it knows no ``QStartNoAckMode``, but takes a new packet as the end of waiting for an
  acknowledgement; and any byte that comes while the guest runs stops it. So we never acknowledge;
- a first connection stops the guest and brings an unsolicited stop reply;
- 7.2 answers ``p``/``P`` with nothing until ``target.xml`` has been read once;
- several requests may go out in one write, and the answers come in order; but nothing may follow
  a ``vCont;c`` in the same write;
- ``m`` takes at most 0x400 bytes (the packet size counts hexadecimal digits).
"""

import asyncio
import re
from pathlib import Path

from isthmus.errors import HypervisorError

MEMORY_CHUNK = 0x400
ANSWER_TIMEOUT_S = 5.0
PACKET_LIMIT = 1 << 20
_STOP = re.compile(rb"[TS]([0-9a-f]{2})(?:.*?thread:p?([0-9a-f]+(?:\.[0-9a-f]+)?))?")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_INCLUDE = re.compile(rb'href="([\w.-]{1,64})"')
_REGISTER = re.compile(rb'<reg name="(\w{1,16})"[^>]*?(?:regnum="(\d{1,4})")?[^>]*?/>')


class StubGoneError(HypervisorError):
    """The connection to the debug stub is lost, or it answers nonsense."""


class Stop:
    """Why the guest stopped: the signal number (5 = breakpoint), and the vCPU's thread id."""

    def __init__(self, signal: int, thread: bytes) -> None:
        self.signal = signal
        self.thread = thread

    @classmethod
    def parse(cls, packet: bytes) -> "Stop | None":
        """Read a stop reply; None if the packet is none."""
        match = _STOP.match(packet)
        return cls(int(match[1], 16), match[2] or b"1") if match else None


class Stub:
    """One connection to a debug stub."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.numbers: dict[str, int] = {}

    @classmethod
    async def connect(cls, path: Path) -> "Stub":
        """Connect (this stops the guest), drain the first stop reply and read the register names.

        :raises StubGoneError: nobody listens, or it is no debug stub.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=PACKET_LIMIT)
        except OSError as error:
            raise StubGoneError(f"{path}: {error.strerror}") from error
        stub = cls(reader, writer)
        # Whatever was said unasked comes before the answer to this.
        stub._send([b"qSupported:multiprocess+;swbreak+;hwbreak+"])
        for _ in range(4):
            if b"PacketSize" in await stub._packet():
                break
        else:
            raise StubGoneError(f"{path}: not a debug stub of QEMU")
        await stub._read_names()
        return stub

    async def ask(self, *requests: bytes) -> list[bytes]:
        """Send requests in one write and return their answers in order; the guest must stand."""
        self._send(list(requests))
        return [await self._packet() for _ in requests]

    async def command(self, line: str) -> str:
        """Run a command of the human monitor through the stub (``qRcmd``) and return its text."""
        self._send([b"qRcmd," + line.encode().hex().encode()])
        text = b""
        while True:
            packet = await self._packet()
            if packet == b"OK":
                return text.decode(errors="replace")
            if packet.startswith(b"O"):
                text += _unhex(packet[1:])
            elif packet == b"" or packet.startswith(b"E"):
                raise StubGoneError(f"the stub refuses {line!r}")
            else:
                text += _unhex(packet)
                return text.decode(errors="replace")

    def go(self, *before: bytes) -> None:
        """Let all vCPUs run, after the requests in ``before``; all in one write.

        Their answers come before the next stop reply, and :meth:`stopped` passes them over.
        """
        self._send([*before, b"vCont;c"])

    async def stopped(self) -> Stop:
        """Wait until the guest stops."""
        while True:
            stop = Stop.parse(await self._packet(timeout=None))
            if stop is not None:
                return stop

    async def step(self, thread: bytes) -> Stop:
        """Let one vCPU execute one instruction."""
        self._send([b"vCont;s:" + thread])
        return await self.stopped()

    def interrupt(self) -> None:
        """Stop the running guest; the stop reply follows."""
        self._writer.write(b"\x03")

    async def memory(self, address: int, length: int) -> bytes:
        """Read memory in the selected vCPU's address space; shorter where it is not mapped."""
        data = b""
        while len(data) < length:
            size = min(MEMORY_CHUNK, length - len(data))
            (answer,) = await self.ask(b"m%x,%x" % (address + len(data), size))
            if not answer or answer.startswith(b"E"):
                break
            data += _unhex(answer)
        return data

    @property
    def closed(self) -> bool:
        """Whether QEMU has hung up."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def close(self) -> None:
        """Close the connection; QEMU leaves the guest and its breakpoints as they are."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return

    async def _read_names(self) -> None:
        """Number the registers as the target's description does."""
        text = await self._document(b"target.xml")
        number = 0
        for name in _INCLUDE.findall(text)[:16]:
            description = _COMMENT.sub(b"", await self._document(name))
            for register in _REGISTER.finditer(description):
                if register[2]:
                    number = int(register[2])
                self.numbers[register[1].decode()] = number
                number += 1

    async def _document(self, name: bytes) -> bytes:
        text = b""
        while len(text) < PACKET_LIMIT:
            (answer,) = await self.ask(b"qXfer:features:read:%s:%x,7f8" % (name, len(text)))
            text += answer[1:]
            if not answer.startswith(b"m"):
                break
        return text

    def _send(self, payloads: list[bytes]) -> None:
        self._writer.write(
            b"".join(b"$%s#%02x" % (payload, sum(payload) & 0xFF) for payload in payloads)
        )

    async def _packet(self, *, timeout: float | None = ANSWER_TIMEOUT_S) -> bytes:
        try:
            if timeout is None:
                raw = await self._reader.readuntil(b"#")
            else:
                raw = await asyncio.wait_for(self._reader.readuntil(b"#"), timeout)
            await self._reader.readexactly(2)
        except (
            OSError,
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ) as error:
            raise StubGoneError("the debug stub went away or does not answer") from error
        return _unescaped(raw[raw.index(b"$") + 1 : -1]) if b"$" in raw else b""


def _unescaped(data: bytes) -> bytes:
    """Undo the protocol's escapes: ``}`` and run lengths (``*``)."""
    if b"}" not in data and b"*" not in data:
        return data
    out = bytearray()
    index = 0
    while index < len(data):
        sign = data[index]
        if sign == ord("}") and index + 1 < len(data):
            out.append(data[index + 1] ^ 0x20)
            index += 2
        elif sign == ord("*") and out and index + 1 < len(data):
            out += out[-1:] * max(0, data[index + 1] - 29)
            index += 2
        else:
            out.append(sign)
            index += 1
    return bytes(out)


def _unhex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        raise StubGoneError("the debug stub answers nonsense") from error
