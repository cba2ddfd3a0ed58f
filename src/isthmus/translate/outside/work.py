"""Doing the faulting instruction: execute it on a copy of the registers, then say what to write."""

import os

from isthmus.translate._core import lib
from isthmus.translate.machine import Kind, Machine
from isthmus.translate.outside.operand import Operand, Pages
from isthmus.translate.outside.segments import Segments
from isthmus.translate.outside.status import Tally
from isthmus.translate.outside.trap import LONGEST, Trap, full
from isthmus.translate.registers import RIP, RSP, changes, control_changes
from isthmus.translate.rsp import (
    SIGTRAP,
    Stub,
    StubGoneError,
    unhex,
    write_memory,
    write_register,
)
from isthmus.translate.vectors import Island, Vectors, read_gate

_ATTEMPTS = 8  # an instruction may ask for bytes, for an operand twice, and then be done
_RF = 1 << 16
_ALL_ONES = (1 << 64) - 1


class Work:
    """Does instructions for traps of one guest."""

    def __init__(self, stub: Stub, tally: Tally) -> None:
        self._stub = stub
        self._tally = tally
        self._machine = Machine()
        self._segments = Segments(stub)
        self._pages = Pages(stub)

    def forget(self) -> None:
        """The guest is another one."""
        self._segments.forget()
        self._pages.forget()

    async def do(self, trap: Trap, vectors: Vectors, thread: bytes) -> list[bytes] | None:
        """Do the instruction; the requests that complete it, None if it is not ours."""
        mode = await self._segments.mode(trap)
        if mode is None:
            return None
        machine, state = self._machine, self._machine.state
        trap.registers.load(state)
        state.rip, state.rflags, state.gpr[4] = trap.rip, trap.flags, trap.rsp
        state.cpl, state.mode = trap.cpl, mode
        state.random, state.random_valid = int.from_bytes(os.urandom(8), "little"), 1
        state.tsc, state.tsc_aux = 0, trap.tables.tsc_aux if trap.tables else trap.vcpu
        if mode != 64:
            await self._segments.bases(trap, state)
        operand, code = Operand(), trap.code
        for _ in range(_ATTEMPTS):
            kind = machine.execute(code, operand)
            if kind is Kind.MORE_BYTES and len(code) < LONGEST:
                more = await self._stub.memory(
                    (trap.rip + len(code)) & _ALL_ONES, LONGEST - len(code)
                )
                if not more:
                    return None
                code += more
            elif kind is Kind.PENDING:
                await self._pages.fetch(trap, operand)
            elif kind is Kind.FAULT:
                return await self._deliver(trap)
            elif kind is Kind.DONE:
                self._tally.done([machine.mnemonic], trap.rip, trap.registers.control(3))
                return await self._complete(trap, operand, vectors, thread)
            else:
                if kind is Kind.LACKS_STATE:
                    self._tally.lacking[machine.mnemonic] += 1
                return None
        return None

    async def _complete(
        self, trap: Trap, operand: Operand, vectors: Vectors, thread: bytes
    ) -> list[bytes]:
        """The requests that bring the vCPU behind the instruction, and its resume."""
        state, outcome = self._machine.state, self._machine.outcome
        piece = _piece(outcome.touched)
        own_clock = piece == "rdtsc"
        requests = changes(state, outcome, self._stub.numbers, clock=own_clock)
        if operand.stored is not None:
            requests.append(write_memory(*operand.stored))
        # RF was set by the fault so that the instruction could be tried again; it has been done.
        frame = b"".join(
            value.to_bytes(8, "little")
            for value in (state.rip, trap.cs, state.rflags & ~_RF, state.gpr[4])
        )
        unmoved = state.gpr[4] == trap.rsp
        requests.append(write_memory(trap.registers.rsp, frame[:24] if unmoved else frame))
        resume_at = vectors.iretq
        if piece:
            if vectors.island is not None:
                resume_at = vectors.island.piece(piece)
            else:
                await self._step_over(dict(Island.PIECES)[piece], resume_at, thread)
        requests.append(write_register(RIP, resume_at.to_bytes(8, "little")))
        return requests

    async def _step_over(self, code: bytes, place: int, thread: bytes) -> None:
        """Let the stopped vCPU alone execute an instruction, lent to it where its IRETQ stands."""
        (saved,) = await self._stub.ask(b"m%x,%x" % (place, len(code)))
        stop = await self._stub.step(
            full(thread),
            write_memory(place, code),
            write_register(RIP, place.to_bytes(8, "little")),
        )
        await self._stub.ask(write_memory(place, unhex(saved)))
        if stop.signal != SIGTRAP:
            raise StubGoneError("the guest was stopped by somebody else in the middle of a step")

    async def _deliver(self, trap: Trap) -> list[bytes] | None:
        """The requests that raise in the guest what the instruction would have raised.

        The frame on the stack is that of a fault at this instruction already, RF included; only
        the error code, CR2 and the handler differ (Intel SDM vol. 3A, 6.12 to 6.15).
        """
        outcome = self._machine.outcome
        tables = trap.tables
        handler = await read_gate(self._stub, tables.idt, outcome.vector) if tables else None
        if handler is None:
            return None
        requests = control_changes(self._machine.state, outcome, self._stub.numbers)
        if outcome.has_error:
            below = trap.registers.rsp - 8
            requests.append(write_memory(below, int(outcome.error_code).to_bytes(8, "little")))
            requests.append(write_register(RSP, below.to_bytes(8, "little")))
        if outcome.vector == 14:
            address = int(outcome.address).to_bytes(8, "little")
            requests.append(write_register(self._stub.numbers["cr2"], address))
        requests.append(write_register(RIP, handler.to_bytes(8, "little")))
        self._tally.faulted += 1
        return requests


def _piece(touched: int) -> str:
    """Which piece of the island has to finish the instruction, "" for none."""
    if touched & lib.ISTHMUS_USED_TSC:
        return "rdtsc"
    if touched & lib.ISTHMUS_WROTE_MMX:
        return "enter-mmx"
    return "leave-mmx" if touched & lib.ISTHMUS_EMPTIED_MMX else ""
