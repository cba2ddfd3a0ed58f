"""One stop at the #UD entry: the vCPU's registers, its exception frame and the code it met.

Frame and code are asked for in the same write as the registers, where they were at the last traps.
What is guessed is only ever *where* to read, never what is there.
"""

import struct

from isthmus.translate.outside.operand import Pages
from isthmus.translate.paging import PAGE, Space
from isthmus.translate.registers import SIZE, Registers
from isthmus.translate.rsp import Stop, Stub, StubGoneError, unhex
from isthmus.translate.vectors import Vcpu, Vectors

FRAME_BYTES = 40
_FRAME = struct.Struct("<5Q")  # RIP CS RFLAGS RSP SS
LONGEST = 15
WINDOW = 96  # bytes of code read at once: a run of instructions
_FLAGS_FIXED = 0xFFFF_FFFF_FFC0_802A
FRAMES, SITES = 2, 3  # guesses; each costs some 10 µs of the stub, a miss costs a round trip


class Trap:
    """One #UD.

    ``code``: the bytes at the instruction, none if they cannot be read; ``tables``: the vCPU's,
    None if it is not known; ``values``: the frame, which is RIP, CS, RFLAGS, RSP and SS.
    """

    def __init__(self, registers: Registers, frame: bytes, vcpu: int, tables: Vcpu | None) -> None:
        self.registers = registers
        self.vcpu = vcpu
        self.tables = tables
        self.code = b""
        self.frame = frame
        self.values: tuple[int, int, int, int, int] = _FRAME.unpack(frame or bytes(FRAME_BYTES))
        self.rip, self.cs, self.flags, self.rsp, self.ss = self.values

    @property
    def cpl(self) -> int:
        """The privilege level of the instruction."""
        return self.cs & 3

    @property
    def believable(self) -> bool:
        """Whether a #UD can have come here: else somebody jumped, or the entry is one no more.

        The CPU aligns the stack to 16 before it pushes five quadwords, takes CS from the gate, and
        pushes flags whose bit 1 is set and whose reserved bits are not (Intel SDM vol. 3A, 6.14;
        vol. 1, 3.4.3).
        """
        if self.tables is None or len(self.frame) < FRAME_BYTES:
            return False
        code_segment = int.from_bytes(self.registers.data[140:142], "little")
        return (
            self.registers.rsp % 16 == 8
            and (code_segment ^ int.from_bytes(self.tables.gate[2:4], "little")) & ~3 == 0
            and self.flags & _FLAGS_FIXED == 2
            and self.cs >> 16 == 0
        )

    @property
    def space(self) -> Space:
        """The address space in force."""
        return self.registers.space(user=self.cpl == 3)


class TrapReader:
    """Reads traps, and remembers where it found the last ones."""

    def __init__(self, stub: Stub, pages: Pages) -> None:
        self._stub = stub
        self._pages = pages
        self.thread = b""  # the one that the stub has selected
        self._frames: dict[bytes, list[int]] = {}
        self._sites: list[int] = []

    def forget(self) -> None:
        """The guest is another one, or was elsewhere."""
        self.thread = b""
        self._frames.clear()
        self._sites.clear()

    async def read(self, stop: Stop, vectors: Vectors) -> Trap | None:
        """The trap of the vCPU that stopped, None if it is not at the entry.

        One whose frame cannot be read, or is no RAM of the guest, has none.
        """
        thread = stop.thread
        requests = [b"Hg" + full(thread)] if thread != self.thread else []
        self.thread = thread
        frames = self._frames.setdefault(thread, [])
        sites = self._sites[:]
        own = len(requests)
        tables = vectors.vcpu(stop.vcpu)
        requests.append(b"g")
        requests += [_frame_request(place) for place in frames]
        requests += [_code_request(place) for place in sites]
        answers = await self._stub.ask(*requests)
        registers = read_registers(answers[own])
        if registers.rip != vectors.entry:
            return None
        place, guessed = registers.rsp, answers[own + 1 : own + 1 + len(frames)]
        codes = dict(zip(sites, answers[own + 1 + len(frames) :], strict=True))
        data = b""
        if await self._pages.holds(registers, place, FRAME_BYTES):
            if place in frames:
                frame = guessed[frames.index(place)]
            else:
                (frame,) = await self._stub.ask(_frame_request(place))
            _remember(frames, place, FRAMES)
            data = _memory(frame)
        elif place in frames:
            frames.remove(place)
        if len(data) < FRAME_BYTES:
            return Trap(registers, b"", stop.vcpu, tables)
        trap = Trap(registers, data, stop.vcpu, tables)
        _remember(self._sites, trap.rip, SITES)
        if trap.rip not in codes:
            (codes[trap.rip],) = await self._stub.ask(_code_request(trap.rip))
        trap.code = _memory(codes[trap.rip])
        return trap


def full(thread: bytes) -> bytes:
    """A thread id in the multiprocess form that QEMU takes."""
    return b"p" + thread if b"." in thread else b"p1." + thread


def read_registers(answer: bytes) -> Registers:
    """The registers in a ``g`` answer.

    :raises StubGoneError: it is none.
    """
    data = unhex(answer)
    if len(data) < SIZE:
        raise StubGoneError("the debug stub gives too few registers")
    return Registers(data)


def _code_request(rip: int) -> bytes:
    """Read instructions, no farther than their page: the next one may not be mapped."""
    return b"m%x,%x" % (rip, min(WINDOW, PAGE - rip % PAGE))


def _frame_request(rsp: int) -> bytes:
    return b"m%x,%x" % (rsp, FRAME_BYTES)


def _memory(answer: bytes) -> bytes:
    return b"" if answer.startswith(b"E") else unhex(answer)


def _remember(recent: list[int], value: int, room: int) -> None:
    """Keep the last different values, the newest first."""
    if recent[:1] != [value]:
        if value in recent:
            recent.remove(value)
        recent.insert(0, value)
        del recent[room:]
