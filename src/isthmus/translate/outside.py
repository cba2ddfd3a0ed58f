"""The outside placement: QEMU's debug stub stops the guest at its #UD entry, we do the work.

At each stop: read the registers, the exception frame and the instruction, let the core execute it,
then write what changed and resume through an IRETQ.  Traps come in loops, so frame and code are
asked for, in the same write as the registers, where they were at the last trap; a right guess
makes a trap two writes, and a wrong one costs a round trip more.  What was guessed is only ever
*where* to read, never what is there.

A #UD that is not ours goes its way: the guest's own handler runs.  What the instruction itself
would have raised instead (a page fault on its operand, say) is delivered to the guest's handler
for that, as the CPU would have done it.

**When the guest may be resumed.** Only as the answer to a breakpoint's stop (signal 5, QEMU's run
state "debug"), or when our own client says so.  Any other stop (a pause by the operator, QEMU's
own last stop of a move) is never answered: QEMU would take a ``vCont;c`` as an order to run, and
a source that was just moved away would run beside its destination.  QEMU does not report a last
stop that comes while the guest stands in a trap; hence :meth:`Translator.hold` before a
switchover.

A stop by a breakpoint may report a vCPU that is not at the entry: two vCPUs can reach it at once,
then one is reported, and QEMU's request to stop may be taken twice.  The other one is not lost:
when it goes on, the breakpoint stops it again, since QEMU does not step over one by itself.
"""

import asyncio
import os
import time
from collections import Counter
from typing import Any

import msgspec

from isthmus.translate._core import lib
from isthmus.translate.machine import Kind, Machine, PageFaultError, UnansweredError
from isthmus.translate.paging import PAGE, Reached, Refused, Space, walk
from isthmus.translate.registers import RIP, RSP, SIZE, Registers, changes, control_changes
from isthmus.translate.rsp import (
    SIGTRAP,
    Stop,
    Stub,
    StubGoneError,
    unhex,
    write_memory,
    write_register,
)
from isthmus.translate.vectors import (
    Island,
    NoEntryError,
    Vectors,
    find_vectors,
    reach,
    read_gate,
    read_physical,
)
from isthmus.values import Value

FRAME_BYTES = 40
LONGEST = 15
_ATTEMPTS = 8  # an instruction may ask for bytes, for an operand twice, and then be done
FRAMES, SITES = 2, 3  # guesses; each costs some 10 µs of the stub, a miss costs a round trip
SPURIOUS_LIMIT = 1000
HOLD_TRIES = 500
_RF = 1 << 16
_ALL_ONES = (1 << 64) - 1
_STAND_S = 0.25
_WALKS = 4096


class TranslatorStatus(Value, frozen=True):
    """The translator's counters since it was armed.

    ``translated`` by mnemonic; ``passed``: #UDs that were the guest's own affair; ``faulted``:
    instructions of ours that raised another exception, as they would have on their own CPU;
    ``spurious``: stops without a #UD; ``us_per_instruction``: mean time from stop to resume in µs;
    ``lacking``: instructions that are known and could not be done, since no stub shows YMM's upper
    halves: the guest got its #UD;
    ``refused``: by family, instructions that are known and that no translator does: the same;
    ``standing``: signal number of a stop that somebody else made and we do not answer, else 0.
    """

    armed: bool
    running: bool
    traps: int
    translated: dict[str, int]
    passed: int
    us_per_instruction: float
    problem: str = ""
    faulted: int = 0
    spurious: int = 0
    standing: int = 0
    lacking: dict[str, int] = msgspec.field(default_factory=dict)
    refused: dict[str, int] = msgspec.field(default_factory=dict)


class _Operand:
    """The memory operand of one instruction: pages walked beforehand, a store put off."""

    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}
        self.writable: set[int] = set()
        self.refused: PageFaultError | None = None
        self.wanted: tuple[int, int, bool] | None = None
        self.stored: tuple[int, bytes] | None = None

    def load(self, address: int, size: int) -> bytes:
        self._judge(address, size, write=False)
        data = self.known.get(address, b"")
        if len(data) < size:
            raise UnansweredError
        return data

    def store(self, address: int, data: bytes) -> None:
        self._judge(address, len(data), write=True)
        if address not in self.writable:
            raise UnansweredError
        self.stored = (address, data)

    def _judge(self, address: int, size: int, *, write: bool) -> None:
        self.wanted = (address, size, write)
        if self.refused is not None:
            raise self.refused


class _Trap:
    """One #UD: the vCPU's registers and its exception frame."""

    def __init__(self, registers: Registers, frame: bytes, vcpu: int) -> None:
        self.registers = registers
        self.vcpu = vcpu
        self.frame = frame
        self.rip, self.cs, self.flags, self.rsp, self.ss = (
            int.from_bytes(frame[at : at + 8], "little") for at in range(0, FRAME_BYTES, 8)
        )

    @property
    def cpl(self) -> int:
        return self.cs & 3

    @property
    def space(self) -> Space:
        registers = self.registers
        return Space(
            cr0=registers.control(0),
            cr3=registers.control(3),
            cr4=registers.control(4),
            user=self.cpl == 3,
        )


class Translator:
    """Serves one guest through one stub connection."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.vectors: Vectors | None = None
        self.translated: Counter[str] = Counter()
        self.passed = 0
        self.lacking: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.faulted = 0
        self.spurious = 0
        self.problem = ""
        self.standing = 0
        self._spent_ns = 0
        self._machine = Machine()
        self._padding = b""
        self._inserted = False
        self._loop: asyncio.Task[None] | None = None
        self._holding = False
        self._busy = False
        self._thread = b""
        self._frames: dict[bytes, list[int]] = {}
        self._sites: list[int] = []
        self._codes: dict[int, bytes] = {}
        self._modes: dict[tuple[int, int], int] = {}
        self._walks: dict[tuple[int, int], tuple[int, ...]] = {}

    async def arm(self) -> Vectors:
        """Find the #UD entry of the stopped guest and break there; does not resume it.

        :raises NoEntryError: the guest has none that can be used.
        :raises StubGoneError: QEMU went away, or refuses.
        """
        if self._loop is not None:
            await self.hold()
        await self._remove()
        # Breakpoints of a translator that was killed would be reported as ours: "?" clears them.
        await self.stub.ask(b"?")
        self._thread = b""
        self._frames.clear()
        self._sites.clear()
        self._modes.clear()
        self._walks.clear()
        self.vectors = await find_vectors(self.stub)
        await self._insert()
        self.problem = ""
        return self.vectors

    def resume(self) -> None:
        """Let the guest run and serve it until :meth:`hold`."""
        self._holding = False
        self.standing = 0
        self._thread = b""
        self.stub.go()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._serve())

    async def hold(self) -> None:
        """Stop the guest between two instructions and promise not to resume it.

        What was written into the guest is taken out, so that it can leave as it came.  The guest is
        left in QEMU's run state "paused", since one in "debug" cannot be loaded anywhere.

        :raises StubGoneError: QEMU went away, or the guest cannot be stopped outside a trap.
        """
        for attempt in range(HOLD_TRIES):
            await self._stop()
            if self.problem or not await self._in_between():
                break
            # Let it get out of there: run it for a moment, longer each time.
            self.stub.go()
            self._loop = asyncio.create_task(self._serve())
            await asyncio.sleep(0.0002 * (1 + attempt % 20))
        else:
            raise StubGoneError("the guest does not leave its #UD entry")
        await self._remove()

    async def detach(self) -> None:
        """Leave the guest for good, running if it ran."""
        running = self.running
        await self.hold()
        self.vectors = None
        if running:
            self.stub.go()
        await self.stub.close()

    async def release(self) -> None:
        """Let a held guest go on: break and write again, then run.

        :raises NoEntryError: it was never armed.
        """
        if self.vectors is None:
            raise NoEntryError("the translator is not armed", remedy="arm it first")
        if not self._inserted:
            await self._insert()
        self.resume()

    @property
    def running(self) -> bool:
        """Whether the guest runs and is served."""
        return self._loop is not None and not self._loop.done() and not self.standing

    def status(self) -> TranslatorStatus:
        """The counters."""
        count = sum(self.translated.values())
        return TranslatorStatus(
            armed=self.vectors is not None,
            running=self.running,
            traps=count + self.passed + self.faulted,
            translated=dict(self.translated),
            passed=self.passed,
            lacking=dict(self.lacking),
            refused=dict(self.refused),
            us_per_instruction=self._spent_ns / 1000 / count if count else 0.0,
            problem=self.problem,
            faulted=self.faulted,
            spurious=self.spurious,
            standing=self.standing,
        )

    async def _stop(self) -> None:
        """End the serving loop with the guest stopped."""
        if self._loop is None:
            return
        self._holding = True
        if not self._busy:
            self.stub.interrupt()
        if self.standing:
            # Most likely it still stands and the interrupt goes unheard.
            await asyncio.wait({self._loop}, timeout=_STAND_S)
            if not self._loop.done():
                self._loop.cancel()
                await asyncio.wait({self._loop})
        else:
            await self._loop
        self._loop = None

    async def _in_between(self) -> bool:
        """Whether some vCPU was stopped where it cannot be left.

        That is at the #UD entry, with an exception on its stack that only we can end, or on the
        bytes that we have written into the guest.
        """
        if self.vectors is None:
            return False
        self._thread = b""
        for vcpu in self.vectors.vcpus:
            answers = await self.stub.ask(b"Hgp1.%x" % (vcpu.number + 1), b"g")
            rip = Registers(_registers(answers[-1])).rip
            if self.vectors.ours(rip):
                return True
        return False

    async def _insert(self) -> None:
        vectors = self._known()
        island = vectors.island
        if island is not None:
            content = island.content()
            self._padding = island.padding(await self.stub.memory(island.address, len(content)))
            (answer,) = await self.stub.ask(write_memory(island.address, content))
            if answer != b"OK":
                raise StubGoneError("the stub does not write the guest's memory")
        (answer,) = await self.stub.ask(b"Z1,%x,1" % vectors.entry)
        if answer != b"OK":
            raise StubGoneError("the stub sets no breakpoint at the guest's #UD entry")
        self._inserted = True

    async def _remove(self) -> None:
        if self.vectors is None or not self._inserted:
            return
        requests = [b"z1,%x,1" % self.vectors.entry]
        if self.vectors.island is not None and self._padding:
            requests.append(write_memory(self.vectors.island.address, self._padding))
        await self.stub.ask(*requests)
        self._inserted = False

    def _known(self) -> Vectors:
        assert self.vectors is not None
        return self.vectors

    async def _serve(self) -> None:
        """Serve stops until told to hold."""
        in_a_row = 0
        try:
            while True:
                stop = await self.stub.stopped()
                if stop.signal != SIGTRAP:
                    self.standing = stop.signal
                    if self._holding:
                        return
                    continue  # somebody else's stop: whoever made it may end it
                self.standing = 0
                begun = time.perf_counter_ns()
                self._busy = True
                translated = await self._trap(stop)
                self._busy = False
                if translated:
                    self._spent_ns += time.perf_counter_ns() - begun
                in_a_row = in_a_row + 1 if translated is None else 0
                if in_a_row > SPURIOUS_LIMIT:
                    self.problem = "the guest stops without a #UD, again and again"
                    return
                if self._holding:
                    if self.standing:
                        return
                    # Stop again, this time not in a trap.
                    self.stub.interrupt()
        except StubGoneError as error:
            self.problem = str(error)

    async def _trap(self, stop: Stop) -> bool | None:
        """Serve one stop and resume; whether an instruction was translated, None if no #UD."""
        trap = await self._read(stop)
        if trap is None:
            self.spurious += 1
            self.stub.go()
            return None
        requests = await self._work(trap) if trap.frame else None
        if requests is None:
            self.passed += 1
            await self._pass(stop)
            return False
        if self._holding:
            await self._step_out(requests)
        else:
            self.stub.go(*requests)
        return True

    async def _step_out(self, requests: list[bytes]) -> None:
        """Complete a trap by single steps, so that the vCPU stands in the guest's own code.

        Run freely towards a stop it would be stopped on its way out, or in its next trap.
        """
        for _ in range(len(Island.PIECES)):
            stepped = await self.stub.step(_full(self._thread), *requests)
            requests = []
            if stepped.signal != SIGTRAP:
                self.standing = stepped.signal
                return
            (answer,) = await self.stub.ask(b"g")
            if not self._leaving(Registers(_registers(answer)).rip):
                break
        self.stub.go()

    def _leaving(self, rip: int) -> bool:
        vectors = self._known()
        return rip == vectors.iretq or (vectors.island is not None and vectors.island.covers(rip))

    async def _read(self, stop: Stop) -> _Trap | None:
        """The registers and the frame of the vCPU that stopped, guessing where the frame is."""
        thread = stop.thread
        requests = [b"Hg" + _full(thread)] if thread != self._thread else []
        self._thread = thread
        frames = self._frames.setdefault(thread, [])
        sites = self._sites[:]
        own = len(requests)
        requests.append(b"g")
        requests += [_frame_request(place) for place in frames]
        requests += [_code_request(place) for place in sites]
        answers = await self.stub.ask(*requests)
        registers = Registers(_registers(answers[own]))
        if registers.rip != self._known().entry:
            return None
        place, guessed = registers.rsp, answers[own + 1 : own + 1 + len(frames)]
        self._codes = dict(zip(sites, answers[own + 1 + len(frames) :], strict=True))
        if place in frames:
            frame = guessed[frames.index(place)]
        else:
            (frame,) = await self.stub.ask(_frame_request(place))
        _remember(frames, place, FRAMES)
        data = _memory(frame)
        if len(data) < FRAME_BYTES:
            return _Trap(registers, b"", stop.vcpu)
        trap = _Trap(registers, data, stop.vcpu)
        _remember(self._sites, trap.rip, SITES)
        return trap

    async def _work(self, trap: _Trap) -> list[bytes] | None:
        """Do the faulting instruction; the requests that complete it, None if it is not ours."""
        mode = await self._mode(trap)
        if mode is None:
            return None
        if trap.rip in self._codes:
            code = _memory(self._codes[trap.rip])
        else:
            code = _memory((await self.stub.ask(_code_request(trap.rip)))[0])
        machine, state = self._machine, self._machine.state
        trap.registers.load(state)
        state.rip, state.rflags, state.gpr[4] = trap.rip, trap.flags, trap.rsp
        state.cpl, state.mode = trap.cpl, mode
        vcpu = self._known().vcpu(trap.vcpu)
        state.random, state.random_valid = int.from_bytes(os.urandom(8), "little"), 1
        state.tsc, state.tsc_aux = 0, vcpu.tsc_aux if vcpu else trap.vcpu
        if mode != 64:
            await self._segment_bases(trap, state)
        operand = _Operand()
        for _ in range(_ATTEMPTS):
            kind = machine.execute(code, operand)
            if kind is Kind.MORE_BYTES and len(code) < LONGEST:
                more = await self.stub.memory(
                    (trap.rip + len(code)) & _ALL_ONES, LONGEST - len(code)
                )
                if not more:
                    return None
                code += more
            elif kind is Kind.PENDING:
                await self._fetch(trap, operand)
            elif kind is Kind.FAULT:
                return await self._deliver(trap)
            elif kind is Kind.DONE:
                return await self._complete(trap, operand)
            else:
                if kind is Kind.LACKS_STATE:
                    self.lacking[machine.mnemonic] += 1
                elif kind is Kind.REFUSED:
                    self.refused[machine.family] += 1
                return None
        return None

    async def _complete(self, trap: _Trap, operand: _Operand) -> list[bytes]:
        """The requests that bring the vCPU behind the instruction, and its resume."""
        state, outcome = self._machine.state, self._machine.outcome
        vectors = self._known()
        piece = _piece(outcome.touched)
        own_clock = piece == "rdtsc"
        requests = changes(state, outcome, self.stub.numbers, clock=own_clock)
        if operand.stored is not None:
            requests.append(write_memory(*operand.stored))
        # RF was set by the fault so that the instruction could be tried again; it has been done.
        frame = b"".join(
            value.to_bytes(8, "little")
            for value in (state.rip, trap.cs, state.rflags & ~_RF, state.gpr[4])
        )
        unmoved = state.gpr[4] == trap.rsp
        requests.append(write_memory(trap.registers.rsp, frame[:24] if unmoved else frame))
        self.translated[self._machine.mnemonic] += 1
        resume_at = vectors.iretq
        if piece:
            if vectors.island is not None:
                resume_at = vectors.island.piece(piece)
            else:
                await self._step_over(dict(Island.PIECES)[piece])
        requests.append(write_register(RIP, resume_at.to_bytes(8, "little")))
        return requests

    async def _step_over(self, code: bytes) -> None:
        """Let the stopped vCPU alone execute an instruction, lent to it where its IRETQ stands."""
        place = self._known().iretq
        (saved,) = await self.stub.ask(b"m%x,%x" % (place, len(code)))
        stop = await self.stub.step(
            _full(self._thread),
            write_memory(place, code),
            write_register(RIP, place.to_bytes(8, "little")),
        )
        await self.stub.ask(write_memory(place, unhex(saved)))
        if stop.signal != SIGTRAP:
            raise StubGoneError("the guest was stopped by somebody else in the middle of a step")

    async def _deliver(self, trap: _Trap) -> list[bytes] | None:
        """The requests that raise in the guest what the instruction would have raised.

        The frame on the stack is that of a fault at this instruction already, RF included; only
        the error code, CR2 and the handler differ (Intel SDM vol. 3A, 6.12 to 6.15).
        """
        outcome = self._machine.outcome
        vcpu = self._known().vcpu(trap.vcpu)
        handler = await read_gate(self.stub, vcpu.idt, outcome.vector) if vcpu else None
        if handler is None:
            return None
        requests = control_changes(self._machine.state, outcome, self.stub.numbers)
        if outcome.has_error:
            below = trap.registers.rsp - 8
            requests.append(write_memory(below, int(outcome.error_code).to_bytes(8, "little")))
            requests.append(write_register(RSP, below.to_bytes(8, "little")))
        if outcome.vector == 14:
            address = int(outcome.address).to_bytes(8, "little")
            requests.append(write_register(self.stub.numbers["cr2"], address))
        requests.append(write_register(RIP, handler.to_bytes(8, "little")))
        self.faulted += 1
        return requests

    async def _fetch(self, trap: _Trap, operand: _Operand) -> None:
        """Walk to the operand's pages, and read it if it is to be read."""
        assert operand.wanted is not None
        address, size, write = operand.wanted
        pages = [address]
        if address // PAGE != (address + size - 1) // PAGE:
            pages.append((address + size - 1) & -PAGE & _ALL_ONES)
        fresh: list[tuple[int, int]] = []
        for page in pages:
            result = await self._reach(trap.space, page, write=write)
            if not isinstance(result, Reached):
                operand.refused = PageFaultError(page, result.error_code)
                return
            fresh += result.fresh
        if fresh:
            marks = [write_memory(place, entry.to_bytes(8, "little")) for place, entry in fresh]
            await self.stub.ask(b"Qqemu.PhyMemMode:1", *marks, b"Qqemu.PhyMemMode:0")
        if write:
            operand.writable.add(address)
        else:
            operand.known[address] = await self.stub.memory(address, size)

    async def _reach(self, space: Space, address: int, *, write: bool) -> Reached | Refused:
        """Walk; a page walked before is walked again in one round trip, with all entries read."""
        key = (space.cr3, address // PAGE)
        if places := self._walks.get(key):
            entries = dict(zip(places, await read_physical(self.stub, list(places)), strict=True))
            result = _replay(space, address, entries, write=write)
            if result is not None:
                return result
        result = await reach(self.stub, space, address, write=write)
        if isinstance(result, Reached):
            if len(self._walks) >= _WALKS:
                self._walks.clear()
            self._walks[key] = tuple(place for place, _ in result.path)
        return result

    async def _mode(self, trap: _Trap) -> int | None:
        """64, 32 or 16, by the code segment's descriptor; None if that cannot be read.

        Bits L and D: Intel SDM vol. 3A, 3.4.5.  A selector keeps its meaning while the guest runs,
        except in the local table, which is a process's own.
        """
        key = (trap.vcpu, trap.cs)
        if key not in self._modes:
            descriptor = await self._descriptor(trap, trap.cs)
            if descriptor is None or len(self._modes) > 64:
                return None
            self._modes[key] = 64 if descriptor[6] & 0x20 else 32 if descriptor[6] & 0x40 else 16
        return self._modes[key]

    async def _descriptor(self, trap: _Trap, selector: int) -> bytes | None:
        vcpu = self._known().vcpu(trap.vcpu)
        if vcpu is None or selector & 4 or selector < 4:
            return None
        descriptor = await self.stub.memory(vcpu.gdt + (selector & 0xFFF8), 8)
        return descriptor if len(descriptor) == 8 else None

    async def _segment_bases(self, trap: _Trap, state: Any) -> None:
        """Bases of ES, CS, SS and DS outside 64-bit mode; FS and GS came with the registers."""
        selectors = trap.registers.data[140:156]  # CS SS DS ES, 4 bytes each
        data, extra = (int.from_bytes(selectors[at : at + 2], "little") for at in (8, 12))
        for index, selector in enumerate((extra, trap.cs, trap.ss, data)):
            descriptor = await self._descriptor(trap, selector)
            state.segment_base[index] = (
                int.from_bytes(descriptor[2:5] + descriptor[7:8], "little") if descriptor else 0
            )

    async def _pass(self, stop: Stop) -> None:
        """Let the guest's own handler run: past the breakpoint at its first instruction."""
        vectors = self._known()
        if vectors.after is not None:
            self.stub.go(write_register(RIP, vectors.after.to_bytes(8, "little")))
            return
        entry = vectors.entry
        stepped = await self.stub.step(_full(stop.thread), b"z1,%x,1" % entry)
        if stepped.signal == SIGTRAP:
            self.stub.go(b"Z1,%x,1" % entry)
        else:  # somebody else stopped the guest in the middle
            await self.stub.ask(b"Z1,%x,1" % entry)
            self.standing = stepped.signal


def _piece(touched: int) -> str:
    """Which piece of the island has to finish the instruction, "" for none."""
    if touched & lib.ISTHMUS_USED_TSC:
        return "rdtsc"
    if touched & lib.ISTHMUS_WROTE_MMX:
        return "enter-mmx"
    return "leave-mmx" if touched & lib.ISTHMUS_EMPTIED_MMX else ""


def _replay(
    space: Space, address: int, entries: dict[int, int], *, write: bool
) -> Reached | Refused | None:
    """Walk over entries that were read beforehand; None if the walk leaves them."""
    steps = walk(space, address, write=write)
    try:
        place = next(steps)
        while place in entries:
            place = steps.send(entries[place])
    except StopIteration as end:
        result: Reached | Refused = end.value
        return result
    return None


def _code_request(rip: int) -> bytes:
    """Read an instruction, no farther than its page: the next one may not be mapped."""
    return b"m%x,%x" % (rip, min(LONGEST, PAGE - rip % PAGE))


def _frame_request(rsp: int) -> bytes:
    return b"m%x,%x" % (rsp, FRAME_BYTES)


def _remember(recent: list[int], value: int, room: int) -> None:
    """Keep the last different values, the newest first."""
    if recent[:1] != [value]:
        if value in recent:
            recent.remove(value)
        recent.insert(0, value)
        del recent[room:]


def _full(thread: bytes) -> bytes:
    """A thread id in the multiprocess form that QEMU takes."""
    return b"p" + thread if b"." in thread else b"p1." + thread


def _memory(answer: bytes) -> bytes:
    return b"" if answer.startswith(b"E") else unhex(answer)


def _registers(answer: bytes) -> bytes:
    data = unhex(answer)
    if len(data) < SIZE:
        raise StubGoneError("the debug stub gives too few registers")
    return data
