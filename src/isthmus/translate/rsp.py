"""A small client of QEMU's debug stub: the GDB remote serial protocol over a UNIX socket.

What QEMU's stub is like, found by experiment and in its source (7.2 and 10.0: gdbstub):

- it knows no ``QStartNoAckMode``, but takes a new packet as the end of waiting for an
  acknowledgement; and any byte that comes while the guest runs stops it.  So we never acknowledge,
  but to stop it;
- a first connection stops the guest and brings an unsolicited stop reply;
- 7.2 answers ``p``/``P`` with nothing until ``target.xml`` has been read once;
- several requests may go out in one write, and the answers come in order; but nothing may follow
  a ``vCont;c`` in the same write;
- ``m`` takes at most 0x400 bytes (the packet size counts hexadecimal digits);
- ``?`` always answers signal 5, and removes all breakpoints;
- a stop selects the stopped vCPU for the requests that follow;
- from 8.1 on a stop is only reported if the stub's own client had let the guest run.

Packets are cut out of the byte stream as they come, and a batch of requests costs one wake-up of
the event loop, because the time of a trap is the time of its round trips.
"""

import asyncio
import re
from collections import deque
from pathlib import Path

from isthmus.errors import HypervisorError

MEMORY_CHUNK = 0x400
ANSWER_TIMEOUT_S = 60.0
"""Long: a stub in an emulated host on a busy machine takes seconds, and whoever gives up takes the
answers that still come for those to later questions."""

PACKET_LIMIT = 1 << 20
SIGINT, SIGTRAP, SIGXCPU = 2, 5, 24
_FEATURES = b"qSupported:multiprocess+;swbreak+;hwbreak+"
_REACH_S = 2.0  # a return from an exception takes as long on the slowest host
_ON_THE_WAY = 8  # packets at most that may come before the answer to that
_STOP = re.compile(rb"[TS]([0-9a-f]{2})(?:.*?thread:p?([0-9a-f]{1,8}(?:\.[0-9a-f]{1,8})?))?")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_INCLUDE = re.compile(rb'href="([\w.-]{1,64})"')
_REGISTER = re.compile(rb"<reg ([^>]{1,300})/>")
_NAME, _REGNUM = re.compile(rb'\bname="(\w{1,16})"'), re.compile(rb'\bregnum="(\d{1,4})"')


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

    @property
    def vcpu(self) -> int:
        """The number of the vCPU: QEMU's threads count from one."""
        return int(self.thread.rsplit(b".", 1)[-1], 16) - 1


class _Packets(asyncio.Protocol):
    """Cuts the stream into packets and wakes whoever waits for some number of them."""

    def __init__(self) -> None:
        self.ready: deque[bytes] = deque()
        self.gone = False
        self._buffer = b""
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Take bytes: ``$payload#xx``, with acknowledgements (``+``) between them."""
        data = self._buffer + data
        at = 0
        while True:
            start = data.find(b"$", at)
            end = data.find(b"#", start + 1) if start >= 0 else -1
            if end < 0 or end + 2 >= len(data):
                break
            self.ready.append(data[start + 1 : end])
            at = end + 3
        # Without a packet's start in sight the rest is acknowledgements or noise.
        self._buffer = data[start:] if start >= 0 else b""
        if len(self._buffer) > PACKET_LIMIT:
            self.connection_lost(None)
        elif len(self.ready) >= self._wanted:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember that there is nobody any more."""
        del exc
        self.gone = True
        self._wake()

    async def take(self, count: int, *, timeout: float | None) -> list[bytes]:
        """The next ``count`` packets."""
        if len(self.ready) < count and not self.gone:
            self._wanted = count
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                if timeout is None:
                    await self._waiter
                else:
                    await asyncio.wait_for(self._waiter, timeout)
            except TimeoutError as error:
                raise StubGoneError("the debug stub does not answer") from error
            finally:
                self._waiter, self._wanted = None, 0
        if len(self.ready) < count:
            raise StubGoneError("the debug stub went away")
        return [_unescaped(self.ready.popleft()) for _ in range(count)]

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Stub:
    """One connection to a debug stub."""

    def __init__(self, transport: asyncio.Transport, packets: _Packets) -> None:
        self._transport = transport
        self._packets = packets
        self._owed = 0
        self.numbers: dict[str, int] = {}

    @classmethod
    async def connect(cls, path: Path) -> "Stub":
        """Connect (this stops the guest), drain the first stop reply and read the register names.

        :raises StubGoneError: nobody listens, or it is no debug stub.
        """
        loop = asyncio.get_running_loop()
        try:
            transport, packets = await loop.create_unix_connection(_Packets, str(path))
        except OSError as error:
            raise StubGoneError(f"{path}: {error.strerror}") from error
        stub = cls(transport, packets)
        try:
            await stub._greet(path)
            await stub._read_names()
        except BaseException:
            transport.close()
            raise
        return stub

    async def ask(self, *requests: bytes) -> list[bytes]:
        """Send requests in one write and return their answers in order; the guest must stand."""
        self._send(requests)
        return await self._packets.take(len(requests), timeout=ANSWER_TIMEOUT_S)

    async def command(self, line: str) -> str:
        """Run a command of the human monitor through the stub (``qRcmd``) and return its text."""
        self._send([b"qRcmd," + line.encode().hex().encode()])
        text = b""
        while len(text) < PACKET_LIMIT:
            packet = await self._packet()
            if packet == b"OK":
                return text.decode(errors="replace")
            if packet.startswith(b"O"):
                text += unhex(packet[1:])
            elif packet == b"" or packet.startswith(b"E"):
                raise StubGoneError(f"the stub refuses {line!r}")
            else:
                text += unhex(packet)
                return text.decode(errors="replace")
        raise StubGoneError(f"the stub does not end its answer to {line!r}")

    def go(self, *before: bytes) -> None:
        """Let all vCPUs run, after the requests in ``before``; all in one write.

        Their answers come before the next stop reply, and :meth:`stopped` passes them over.
        """
        self._owed += len(before)
        self._send([*before, b"vCont;c"])

    async def stopped(self) -> Stop:
        """Wait until the guest stops."""
        while True:
            (packet,) = await self._packets.take(1, timeout=None)
            if self._owed:
                self._owed -= 1
                if packet.startswith(b"E"):
                    raise StubGoneError("the debug stub refuses to write registers or memory")
                continue
            stop = Stop.parse(packet)
            if stop is not None:
                return stop

    async def step(self, thread: bytes, *before: bytes) -> Stop:
        """Let one vCPU execute one instruction, after the requests in ``before``."""
        self._owed += len(before)
        self._send([*before, b"vCont;s:" + thread])
        try:
            return await asyncio.wait_for(self.stopped(), ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise StubGoneError("a single step does not end") from error

    async def run_to(self, address: int, *before: bytes) -> Stop:
        """Run the vCPUs, after the requests in ``before``, until one stops: at the latest there.

        It may be stopped elsewhere, by a breakpoint that is there already, or by us, if the
        address is not reached (SIGINT).
        """
        self._owed += len(before) + 1
        self._send([*before, b"Z1,%x,1" % address, b"vCont;c"])
        waiting = asyncio.ensure_future(self.stopped())
        if not (await asyncio.wait({waiting}, timeout=_REACH_S))[0]:
            self.interrupt()
        try:
            stop = await asyncio.wait_for(waiting, ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise StubGoneError("the guest does not stop") from error
        await self.ask(b"z1,%x,1" % address)
        return stop

    def interrupt(self) -> None:
        """Stop the running guest; the stop reply follows.  A guest that stands does not notice.

        The stub drops what comes before its last packet is acknowledged, unless it is a new one:
        so after a stop that somebody else made and ended.  Where there is nothing to acknowledge
        the "+" stops the guest, and the rest is not noticed.
        """
        self._transport.write(b"+\x03")

    def pause(self) -> None:
        """Turn a stop of the debugger into a pause: let the guest go on and stop it in one write.

        The run state is "paused" then, and no vCPU has executed anything, since none gets QEMU's
        lock between the two (gdbstub.c, gdb_chr_receive; softmmu/cpus.c, cpu_can_run).  The stop
        reply follows.
        """
        self._transport.write(b"$vCont;c#%02x\x03" % (sum(b"vCont;c") & 0xFF))

    async def settle(self) -> None:
        """Pass over all that is still on its way, where the guest is known to stand by other means.

        The report of its stop may come later than the news of it: from an emulated host it takes
        seconds, and would be taken for the answer to the next request.
        """
        self._owed = 0
        self._send([_FEATURES])
        for _ in range(_ON_THE_WAY):
            if b"PacketSize" in await self._packet():
                return
        raise StubGoneError("the debug stub answers nonsense")

    async def memory(self, address: int, length: int) -> bytes:
        """Read memory in the selected vCPU's address space; shorter where it is not mapped."""
        answers = await self.ask(
            *(
                b"m%x,%x" % (address + at, min(MEMORY_CHUNK, length - at))
                for at in range(0, length, MEMORY_CHUNK)
            )
        )
        data = b""
        for answer in answers:
            if not answer or answer.startswith(b"E"):
                break
            data += unhex(answer)
        return data

    @property
    def closed(self) -> bool:
        """Whether QEMU has hung up."""
        return self._packets.gone

    async def close(self) -> None:
        """Close the connection; QEMU leaves the guest and its breakpoints as they are."""
        self._transport.close()
        await asyncio.sleep(0)

    async def _greet(self, path: Path) -> None:
        # Whatever was said unasked comes before the answer to this.
        self._send([_FEATURES])
        for _ in range(_ON_THE_WAY):
            if b"PacketSize" in await self._packet():
                return
        raise StubGoneError(f"{path}: not a debug stub of QEMU")

    async def _read_names(self) -> None:
        """Number the registers as the target's description does."""
        text = await self._document(b"target.xml")
        number = 0
        for name in _INCLUDE.findall(text)[:16]:
            description = _COMMENT.sub(b"", await self._document(name))
            for register in _REGISTER.finditer(description):
                named, numbered = _NAME.search(register[1]), _REGNUM.search(register[1])
                if numbered is not None:
                    number = int(numbered[1])
                if named is not None:
                    self.numbers[named[1].decode()] = number
                number += 1

    async def _document(self, name: bytes) -> bytes:
        text = b""
        while len(text) < PACKET_LIMIT:
            (answer,) = await self.ask(b"qXfer:features:read:%s:%x,7f8" % (name, len(text)))
            text += answer[1:]
            if not answer.startswith(b"m") or len(answer) < 2:
                break
        return text

    def _send(self, payloads: list[bytes] | tuple[bytes, ...]) -> None:
        if self._packets.gone:
            raise StubGoneError("the debug stub went away")
        self._transport.write(
            b"".join([b"$%s#%02x" % (payload, sum(payload) & 0xFF) for payload in payloads])
        )

    async def _packet(self) -> bytes:
        return (await self._packets.take(1, timeout=ANSWER_TIMEOUT_S))[0]


def _unescaped(data: bytes) -> bytes:
    """Undo the protocol's escapes: ``}`` and run lengths (``*``)."""
    if b"}" not in data and b"*" not in data:
        return data
    out = bytearray()
    index = 0
    while index < len(data) and len(out) < PACKET_LIMIT:
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


def unhex(text: bytes) -> bytes:
    """The bytes that hexadecimal digits of the stub stand for.

    :raises StubGoneError: they are none.
    """
    try:
        return bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        raise StubGoneError("the debug stub answers nonsense") from error


def write_memory(address: int, data: bytes) -> bytes:
    """The request that writes memory in the selected vCPU's address space."""
    return b"M%x,%x:%s" % (address, len(data), data.hex().encode())


def write_register(number: int, data: bytes) -> bytes:
    """The request that writes one register of the selected vCPU."""
    return b"P%x=%s" % (number, data.hex().encode())
