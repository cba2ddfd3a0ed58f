"""Raise an exception in the guest as its CPU would have: gate, stack, frame, handler.

What stands on the stack at the #UD entry is the frame of a fault at the missing instruction.  For
another exception it may have to lie elsewhere: a gate may name a stack of its own (IST), and one of
the two gates may have one where the other has none.

Source: Intel SDM vol. 3A, 6.12 and 6.14 (64-bit mode: stack switching, IST), 7.7 (the 64-bit TSS),
17.2 (DR6, DR7), 17.3.1.4 (single-step exception: a trap behind the instruction).
"""

import struct

from isthmus.translate.outside.operand import Pages
from isthmus.translate.outside.trap import FRAME_BYTES, Trap, full
from isthmus.translate.registers import RIP, RSP
from isthmus.translate.rsp import (
    SIGTRAP,
    Stub,
    StubGoneError,
    unhex,
    write_memory,
    write_register,
)
from isthmus.translate.tables import COMMAND, read_tables
from isthmus.translate.vectors import handler_of
from isthmus.values import Value

DEBUG, PAGE_FAULT = 1, 14  # vectors
_FLAGS, _IF = 17, 1 << 9  # the stub's number of EFLAGS
_RAX = 0
_DR6_BS = 1 << 14
_READ_DR6, _WRITE_DR6 = bytes.fromhex("0f21f0"), bytes.fromhex("0f23f0")  # MOV RAX,DR6; DR6,RAX
_FRAME = struct.Struct("<5Q")
_RSP0, _IST1 = 4, 0x24
_TRAP_GATE = 15


class _Gate(Value, frozen=True):
    """A present gate: its handler, code selector, stack (0: none of its own), and kind."""

    handler: int
    selector: int
    stack: int
    keeps_if: bool

    @classmethod
    def parse(cls, data: bytes) -> "_Gate | None":
        handler = handler_of(data, any_stack=True)
        if handler is None:
            return None
        return cls(
            handler=handler,
            selector=int.from_bytes(data[2:4], "little"),
            stack=data[4] & 7,
            keeps_if=data[5] & 15 == _TRAP_GATE,
        )


class Delivery:
    """Raises exceptions in one guest."""

    def __init__(self, stub: Stub, pages: Pages) -> None:
        self._stub = stub
        self._pages = pages

    async def requests(
        self,
        trap: Trap,
        vector: int,
        frame: tuple[int, int, int, int, int],
        *,
        error_code: int | None = None,
        address: int = 0,
    ) -> list[bytes] | None:
        """The requests that bring the vCPU to the handler; None if there is no way there.

        :param frame: RIP, CS, RFLAGS, RSP and SS of the interrupted code.
        :param address: what CR2 is to hold, for a page fault.
        """
        tables = trap.tables
        if tables is None:
            return None
        gate = _Gate.parse(await self._stub.memory(tables.idt + vector * 16, 16))
        ours = _Gate.parse(tables.gate)
        if gate is None or ours is None or (gate.selector ^ ours.selector) & ~3:
            return None
        top = trap.registers.rsp + FRAME_BYTES
        if gate.stack != ours.stack:
            found = await self._stack(trap, gate)
            if found is None:
                return None
            top = found
        place = top - FRAME_BYTES
        requests = []
        if place != trap.registers.rsp or frame != trap.values:
            requests.append(write_memory(place, _FRAME.pack(*frame)))
        if error_code is not None:
            place -= 8
            requests.append(write_memory(place, error_code.to_bytes(8, "little")))
        if place != trap.registers.rsp:
            requests.append(write_register(RSP, place.to_bytes(8, "little")))
        if vector == PAGE_FAULT:
            cr2 = self._stub.numbers["cr2"]
            requests.append(write_register(cr2, address.to_bytes(8, "little")))
        flags = trap.registers.flags & ~_IF | (frame[2] & _IF if gate.keeps_if else 0)
        if flags != trap.registers.flags:
            requests.append(write_register(_FLAGS, flags.to_bytes(4, "little")))
        requests.append(write_register(RIP, gate.handler.to_bytes(8, "little")))
        return requests

    async def _stack(self, trap: Trap, gate: _Gate) -> int | None:
        """The top of the stack that the CPU would switch to; None if no frame can lie there."""
        if not gate.stack and trap.cpl == 0:
            top = trap.rsp
        else:
            said = read_tables(await self._stub.command(COMMAND))
            await self._stub.ask(b"Hgp1.%x" % (trap.vcpu + 1))
            tss = next((tables.tss for tables in said if tables.number == trap.vcpu), 0)
            at = _IST1 + 8 * (gate.stack - 1) if gate.stack else _RSP0
            data = await self._stub.memory(tss + at, 8)
            if len(data) < 8:
                return None
            top = int.from_bytes(data, "little")
        top &= -16
        below = FRAME_BYTES + 8
        held = await self._pages.holds(trap.registers, top - below, below)
        return top if held else None

    async def note_step(self, rax: int, place: int, thread: bytes) -> None:
        """Say in DR6 that a single step ended; no register of the stub is DR6.

        :param rax: what RAX holds afterwards.
        :param place: of kernel text, where code may be lent to the stopped vCPU.
        """
        await self.lend(_READ_DR6, place, thread)
        (answer,) = await self._stub.ask(b"p%x" % _RAX)
        seen = int.from_bytes(unhex(answer)[:8], "little") | _DR6_BS
        await self._stub.ask(write_register(_RAX, seen.to_bytes(8, "little")))
        await self.lend(_WRITE_DR6, place, thread)
        await self._stub.ask(write_register(_RAX, rax.to_bytes(8, "little")))

    async def lend(self, code: bytes, place: int, thread: bytes) -> None:
        """Let the stopped vCPU alone execute one instruction, lent to it at ``place``."""
        (saved,) = await self._stub.ask(b"m%x,%x" % (place, len(code)))
        stop = await self._stub.step(
            full(thread),
            write_memory(place, code),
            write_register(RIP, place.to_bytes(8, "little")),
        )
        await self._stub.ask(write_memory(place, unhex(saved)))
        if stop.signal != SIGTRAP:
            raise StubGoneError("the guest was stopped by somebody else in the middle of a step")
