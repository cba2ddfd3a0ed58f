"""Doing the faulting instruction: execute it on a copy of the registers, then say what to write.

A stop costs a thousand times the work.  So what follows the instruction is done in the same stop,
as far as it is missing too or ordinary (moves and sums between registers, jumps); see
``core/simple.c``.
"""

import os
import struct

from isthmus.translate._core import ffi, lib
from isthmus.translate.machine import Kind, Machine
from isthmus.translate.outside.delivery import DEBUG, PAGE_FAULT, Delivery
from isthmus.translate.outside.operand import Operand, Pages
from isthmus.translate.outside.segments import Segments
from isthmus.translate.outside.status import Tally
from isthmus.translate.outside.trap import FRAME_BYTES, LONGEST, Trap
from isthmus.translate.paging import Reached, Refused
from isthmus.translate.registers import RIP, changes, control_changes
from isthmus.translate.rsp import Stub, unhex, write_memory, write_register
from isthmus.translate.vectors import Island, Vectors

_ATTEMPTS = 8  # an instruction may ask for bytes, for an operand twice, and then be done
_STEPS, _MOST = 64, 32  # instructions in one stop, and how many of them of ours
_FETCHES = 4  # operands that a run may ask for behind its first instruction
_ENDS = 4096  # remembered
_TF, _RF = 1 << 8, 1 << 16
_ERROR_FETCH = 16  # Intel SDM vol. 3A, 4.7: I/D
_RETURN = struct.Struct("<4Q")  # RIP CS RFLAGS RSP
_ALL_ONES = (1 << 64) - 1
_FXAM, _FFREE = bytes.fromhex("d9e5"), bytes.fromhex("ddc0")  # of ST(0)
_CLASS, _EMPTY = 0x4500, 0x4100  # what FXAM says in C3, C2, C0 (Intel SDM vol. 2A, FXAM)
_TOP = 0x3800


class Work:
    """Does instructions for traps of one guest."""

    def __init__(self, stub: Stub, tally: Tally, pages: Pages) -> None:
        self._stub = stub
        self._tally = tally
        self._machine = Machine()
        self._machine.state.random_valid = 1
        self._draw()
        self._ends: set[tuple[int, bytes]] = set()
        self.after: int | None = None  # where the vCPU goes on by what `do` has said, if known
        self._segments = Segments(stub)
        self._pages = pages
        self._delivery = Delivery(stub, pages)

    def _draw(self) -> None:
        """Fresh entropy, since what was there has been given away."""
        self._machine.state.random = int.from_bytes(os.urandom(8), "little")

    def forget(self) -> None:
        """The guest is another one."""
        self._segments.forget()

    async def do(self, trap: Trap, vectors: Vectors, thread: bytes) -> list[bytes] | None:
        """Do the instruction, and what follows; the requests that complete it.

        None if it is not ours.
        """
        self.after = None
        mode = await self._segments.mode(trap)
        if mode is None:
            return None
        state = self._machine.state
        trap.registers.load(state)
        state.rip, state.rflags, state.gpr[4] = trap.rip, trap.flags, trap.rsp
        state.cpl, state.mode, state.ordinary = trap.cpl, mode, 0
        state.tsc, state.tsc_aux = 0, trap.tables.tsc_aux if trap.tables else trap.vcpu
        if mode != 64:
            await self._segments.bases(trap, state)
        rsp = trap.registers.rsp
        operand = Operand((rsp, rsp + FRAME_BYTES))
        kind = await self._first(trap, operand)
        if kind is Kind.LACKS_STATE and self._machine.mnemonic == "FISTTP":
            await self._lend_x87(trap, vectors, thread)
            kind = await self._first(trap, operand)
        if kind is Kind.FAULT:
            outcome = self._machine.outcome
            error = int(outcome.error_code) if outcome.has_error else None
            return await self._deliver(trap, outcome.vector, error, int(outcome.address))
        if kind is None:
            unread = await self._fetch_error(trap)
            return None if unread is None else await self._deliver(trap, PAGE_FAULT, *unread)
        if kind is not Kind.DONE:
            if kind is Kind.LACKS_STATE:
                self._tally.lacking[self._machine.mnemonic] += 1
            elif kind is Kind.REFUSED:
                self._tally.refused[self._machine.family] += 1
            return None
        run = Run(self._machine)
        if not trap.flags & _TF:
            await self._go_on(trap, operand, run)
        if run.touched & lib.ISTHMUS_USED_RANDOM:
            self._draw()
        self._tally.done(run.mnemonics, trap.rip, trap.registers.control(3))
        return await self._complete(trap, operand, run, vectors, thread)

    async def _first(self, trap: Trap, operand: Operand) -> Kind | None:
        """Execute the instruction that trapped; None if its bytes end where no page is."""
        kind = Kind.NOT_OURS
        for _ in range(_ATTEMPTS):
            operand.again()
            kind = self._machine.execute(trap.code[:LONGEST], operand)
            if kind is Kind.MORE_BYTES and len(trap.code) < LONGEST:
                beyond = (trap.rip + len(trap.code)) & _ALL_ONES
                more = await self._stub.memory(beyond, LONGEST - len(trap.code))
                if not more or not isinstance(
                    await self._pages.reach(trap.space, beyond, write=False), Reached
                ):
                    return None
                trap.code += more
            elif kind is not Kind.PENDING:
                return kind
            elif not await self._pages.fetch(trap.space, operand):
                break
        return Kind.NOT_OURS

    async def _lend_x87(self, trap: Trap, vectors: Vectors, thread: bytes) -> None:
        """Find out whether ST(0) is empty: no register of the stub tells, so the CPU says it."""
        fstat, status = self._stub.numbers["fstat"], trap.registers.x87_status
        await self._delivery.lend(_FXAM, vectors.iretq, thread)
        (answer,) = await self._stub.ask(b"p%x" % fstat)
        found = int.from_bytes(unhex(answer), "little")
        await self._stub.ask(
            write_register(fstat, status.to_bytes(4, "little")),
            write_register(RIP, trap.registers.rip.to_bytes(8, "little")),
        )
        trap.registers.lend_x87(self._machine.state, empty=found & _CLASS == _EMPTY)

    async def _go_on(self, trap: Trap, operand: Operand, run: "Run") -> None:
        """Do what follows as long as that is ours or ordinary, and its bytes are at hand.

        Whatever else it is, it is left for the guest to execute: if that traps, it is the first of
        its own trap, and is served, or faults, as such.
        """
        machine, state = self._machine, self._machine.state
        fetches = 0
        state.ordinary = 1
        for _ in range(_STEPS):
            at = (state.rip - trap.rip) & _ALL_ONES
            if at >= len(trap.code) or run.ended or len(run.mnemonics) >= _MOST:
                return
            if operand.touched(trap.rip, trap.rip + len(trap.code)):
                return  # the bytes at hand may be old
            code = trap.code[at : at + LONGEST]
            if (state.mode, code) in self._ends:
                return
            if machine.outcome.touched & lib.ISTHMUS_USED_RANDOM:
                self._draw()
            saved = bytes(ffi.buffer(state))
            operand.begin()
            while True:
                operand.again()
                kind = machine.execute(code, operand)
                if kind is not Kind.PENDING or operand.wanted is None or fetches >= _FETCHES:
                    break
                fetches += 1
                if not await self._pages.fetch(trap.space, operand):
                    break
            if kind is not Kind.DONE or not run.add(machine):
                operand.again()
                ffi.memmove(state, saved, len(saved))
                if kind is Kind.NOT_OURS:
                    self._remember_end(state.mode, code)
                return

    def _remember_end(self, mode: int, code: bytes) -> None:
        """These bytes end a run: the next time they need not be looked at."""
        if len(self._ends) >= _ENDS:
            self._ends.clear()
        self._ends.add((mode, code))

    async def _fetch_error(self, trap: Trap) -> tuple[int, int] | None:
        """Error code and address of the page fault that fetching the instruction raises.

        The CPU that lacks it raised #UD before it had seen all of it.  None if the page is there.
        """
        beyond = (trap.rip + len(trap.code)) & _ALL_ONES
        result = await self._pages.reach(trap.space, beyond, write=False)
        return (result.error_code | _ERROR_FETCH, beyond) if isinstance(result, Refused) else None

    async def _complete(
        self, trap: Trap, operand: Operand, run: "Run", vectors: Vectors, thread: bytes
    ) -> list[bytes]:
        """The requests that bring the vCPU behind the instruction, and its resume.

        With TF set that is the handler of the single step: an IRETQ with TF would trap one later.
        """
        state = self._machine.state
        piece = run.piece
        before = trap.registers.x87_status
        if run.touched & lib.ISTHMUS_WROTE_X87 and (before ^ int(state.x87_status)) & _TOP:
            await self._delivery.lend(_FFREE, vectors.iretq, thread)
        requests = changes(state, run, self._stub.numbers, clock=piece == "rdtsc")
        requests += [write_memory(*stored) for stored in operand.stored]
        # RF was set by the fault so that the instruction could be tried again; it has been done.
        flags = state.rflags & ~_RF
        if flags & _TF:
            after = (int(state.rip), trap.cs, int(flags), int(state.gpr[4]), trap.ss)
            stepped = await self._delivery.requests(trap, DEBUG, after)
            if stepped is not None:
                await self._delivery.note_step(int(state.gpr[0]), vectors.iretq, thread)
                if piece:
                    await self._delivery.lend(dict(Island.PIECES)[piece], vectors.iretq, thread)
                return requests + stepped
        self.after = int(state.rip)
        frame = _RETURN.pack(state.rip, trap.cs, flags, state.gpr[4])
        unmoved = state.gpr[4] == trap.rsp
        requests.append(write_memory(trap.registers.rsp, frame[:24] if unmoved else frame))
        resume_at = vectors.iretq
        if piece:
            if vectors.island is not None:
                resume_at = vectors.island.piece(piece)
            else:
                await self._delivery.lend(dict(Island.PIECES)[piece], resume_at, thread)
        requests.append(write_register(RIP, resume_at.to_bytes(8, "little")))
        return requests

    async def _deliver(
        self, trap: Trap, vector: int, error_code: int | None, address: int
    ) -> list[bytes] | None:
        """The requests that raise in the guest what the instruction would have raised.

        The frame on the stack is that of a fault at this instruction already, RF included.
        """
        requests = await self._delivery.requests(
            trap, vector, trap.values, error_code=error_code, address=address
        )
        if requests is None:
            return None
        self._tally.faulted += 1
        state, outcome = self._machine.state, self._machine.outcome
        return control_changes(state, outcome, self._stub.numbers) + requests


class Run:
    """What a run of instructions has written so far, in the words of ``struct isthmus_outcome``."""

    def __init__(self, machine: Machine) -> None:
        self.mnemonics: list[str] = []
        self.gpr_written = self.xmm_written = self.mmx_written = self.touched = 0
        self.piece = ""
        self.ended = False
        self.add(machine)

    def add(self, machine: Machine) -> bool:
        """Take in the last instruction; false if it cannot end a run that has come this far."""
        outcome = machine.outcome
        piece = _piece(outcome.touched)
        if piece == "rdtsc" and self.piece:
            return False  # the guest's CPU finishes one such thing at a time
        self.piece = piece or self.piece
        self.gpr_written |= outcome.gpr_written
        self.xmm_written |= outcome.xmm_written
        self.mmx_written |= outcome.mmx_written
        self.touched |= outcome.touched
        self.ended = bool(outcome.touched & _LAST)
        if outcome.mnemonic:
            self.mnemonics.append(machine.mnemonic)
        return True


# What ends a run: the state that comes next has to be read from the guest's CPU.
_LAST = lib.ISTHMUS_USED_TSC | lib.ISTHMUS_WAITED | lib.ISTHMUS_WROTE_X87


def _piece(touched: int) -> str:
    """Which piece of the island has to finish the instruction, "" for none."""
    if touched & lib.ISTHMUS_USED_TSC:
        return "rdtsc"
    if touched & lib.ISTHMUS_WROTE_MMX:
        return "enter-mmx"
    return "leave-mmx" if touched & lib.ISTHMUS_EMPTIED_MMX else ""
