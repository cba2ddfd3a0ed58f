"""The outside placement: QEMU's debug stub stops the guest at its #UD entry, we do the work.

At each stop: read the registers and the exception frame in one write, fetch the instruction, let
the core execute it, then write what changed and resume through an IRETQ, again in one write. A
#UD that is not ours goes its way: the guest's own handler runs.

The rule that keeps a guest from running twice: the guest is resumed only as the answer to a stop
at the #UD entry. Any other stop (a pause by the operator, QEMU's own last stop of a move) is
never answered; QEMU would take a ``vCont;c`` as an order to run the stale source.
"""

import asyncio
import time
from collections import Counter
from typing import NamedTuple

from isthmus.translate._core import ffi, lib
from isthmus.translate.registers import RIP, SIZE, Registers
from isthmus.translate.rsp import Stop, Stub, StubGoneError
from isthmus.translate.vectors import RDTSC_IRETQ, Vectors, find_vectors
from isthmus.values import Value

SIGTRAP = 5
FRAME_BYTES = 40
_RF = 1 << 16
_PAGE = 0x1000
_ALL_ONES = (1 << 64) - 1


class TranslatorStatus(Value, frozen=True):
    """The translator's counters since it was armed.

    ``translated`` by mnemonic; ``passed`` #UDs that were the guest's own affair;
    ``us_per_instruction`` mean time from stop to resume in µs.
    """

    armed: bool
    running: bool
    traps: int
    translated: dict[str, int]
    passed: int
    us_per_instruction: float
    problem: str = ""


class _Site(NamedTuple):
    """Where a #UD came from: the exception frame's address and bytes, the instruction's."""

    rsp: int
    rip: int
    frame: bytes
    code: bytes


class Translator:
    """Serves one guest through one stub connection."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.vectors: Vectors | None = None
        self.translated: Counter[str] = Counter()
        self.passed = 0
        self.problem = ""
        self._spent_ns = 0
        self._cpu = ffi.new("struct ic_cpu *")
        self._insn = ffi.new("struct ic_insn *")
        self._data = ffi.new("uint8_t[16]")
        self._padding = b""
        self._loop: asyncio.Task[None] | None = None
        self._holding = False
        self._thread = b""
        self._guess = _Site(0, 0, b"", b"")

    async def arm(self) -> Vectors:
        """Find the #UD entry of the stopped guest and break there; does not resume it."""
        self.vectors = await find_vectors(self.stub)
        await self._insert()
        return self.vectors

    def resume(self) -> None:
        """Let the guest run and serve it until :meth:`hold`."""
        self._holding = False
        self._loop = asyncio.create_task(self._serve(resume_first=True))

    async def hold(self) -> None:
        """Stop the guest between two instructions and promise not to resume it.

        What was written into the guest is taken out, so that it can leave as it came.
        """
        if self._loop is not None:
            self._holding = True
            self.stub.interrupt()
            await self._loop
            while await self._in_between():
                self._loop = asyncio.create_task(self._serve(resume_first=True))
                await asyncio.sleep(0.001)
                self.stub.interrupt()
                await self._loop
            self._loop = None
        await self._remove()

    async def _in_between(self) -> bool:
        """Whether some vCPU was stopped where it cannot be left.

        That is at the #UD entry, with an exception on its stack that only we can end, or on the
        bytes that we have written into the guest.
        """
        vectors = self._known()
        if self.problem:
            return False
        ours = {vectors.entry}
        if vectors.clock is not None:
            ours.update(range(vectors.clock, vectors.clock + len(RDTSC_IRETQ)))
        for vcpu in range(len(vectors.tsc_aux)):
            thread = b"p1.%x" % (vcpu + 1)
            self._thread = b""
            answers = await self.stub.ask(b"Hg" + thread, b"g")
            if Registers(_hex(answers[-1], SIZE)).rip in ours:
                return True
        return False

    async def release(self) -> None:
        """Let a held guest go on: break and write again, then run."""
        await self._insert()
        self.resume()

    @property
    def running(self) -> bool:
        """Whether the guest runs and is served."""
        return self._loop is not None and not self._loop.done()

    def status(self) -> TranslatorStatus:
        """The counters."""
        count = sum(self.translated.values())
        return TranslatorStatus(
            armed=self.vectors is not None,
            running=self.running,
            traps=count + self.passed,
            translated=dict(self.translated),
            passed=self.passed,
            us_per_instruction=self._spent_ns / 1000 / count if count else 0.0,
            problem=self.problem,
        )

    async def _insert(self) -> None:
        vectors = self._known()
        if vectors.clock is not None:
            self._padding = await self.stub.memory(vectors.clock, len(RDTSC_IRETQ))
            await self.stub.ask(_write(vectors.clock, RDTSC_IRETQ))
        (answer,) = await self.stub.ask(b"Z1,%x,1" % vectors.entry)
        if answer != b"OK":
            raise StubGoneError("the stub sets no breakpoint at the guest's #UD entry")

    async def _remove(self) -> None:
        if self.vectors is None:
            return
        await self.stub.ask(b"z1,%x,1" % self.vectors.entry)
        if self.vectors.clock is not None and self._padding:
            await self.stub.ask(_write(self.vectors.clock, self._padding))

    def _known(self) -> Vectors:
        assert self.vectors is not None
        return self.vectors

    async def _serve(self, *, resume_first: bool) -> None:
        if resume_first:
            self.stub.go()
        try:
            while True:
                stop = await self.stub.stopped()
                if stop.signal != SIGTRAP:
                    if not self._holding:
                        self.problem = f"the guest was stopped by somebody else ({stop.signal})"
                    return
                if not await self._trap(stop):
                    return
        except StubGoneError as error:
            self.problem = str(error)

    async def _trap(self, stop: Stop) -> bool:
        """Serve one stop; False if the guest was left standing."""
        begun = time.perf_counter_ns()
        requests: list[bytes] = []
        if stop.thread != self._thread:
            requests.append(b"Hg" + _full(stop.thread))
            self._thread = stop.thread
        # A guess in the same write: the frame and the code where they were at the last stop.  A
        # program's traps come by the same entry stack, and a loop's by the same instruction.
        guess = self._guess
        guesses = (_read(guess.rsp, FRAME_BYTES), _read(guess.rip, len(guess.code)))
        *_, first, frame, code = await self.stub.ask(*requests, b"g", *guesses)
        registers = Registers(_hex(first, SIZE))
        vectors = self._known()
        if registers.rip != vectors.entry:
            self.problem = f"stopped at {registers.rip:#x}, which is not the #UD entry"
            return False
        site = await self._site(registers.rsp, frame, code)
        changes = await self._work(registers, site, _number(stop.thread)) if site else None
        if changes is None:
            self.passed += 1
            await self._pass(stop)
            changes = []
        self.stub.go(*changes)
        if self._holding:
            # Stop again, this time not in a trap: a guest that leaves QEMU in the run state "debug"
            # cannot be loaded anywhere.
            self.stub.interrupt()
        self._spent_ns += time.perf_counter_ns() - begun
        return True

    async def _site(self, rsp: int, frame_text: bytes, code_text: bytes) -> _Site | None:
        """The frame and the code of this stop, from the guess if it was right, else read now."""
        guess = self._guess
        frame = _bytes(frame_text) if rsp == guess.rsp else b""
        if len(frame) < FRAME_BYTES:
            frame = await self.stub.memory(rsp, FRAME_BYTES)
        if len(frame) < FRAME_BYTES:
            return None
        rip = int.from_bytes(frame[0:8], "little")
        code = _bytes(code_text) if rip == guess.rip else b""
        if not code:
            code = await self._code(rip)
        self._guess = _Site(rsp, rip, frame, code)
        return self._guess

    async def _work(self, registers: Registers, site: _Site, vcpu: int) -> list[bytes] | None:
        """Do the faulting instruction; the requests that complete it, None if it is not ours."""
        frame, rip, code = site.frame, site.rip, site.code
        cs, flags = (int.from_bytes(frame[i : i + 8], "little") for i in (8, 16))
        cpu, insn = self._cpu, self._insn
        registers.load(cpu)
        cpu.rip, cpu.rflags, cpu.cpl = rip, flags, cs & 3
        cpu.gpr[4] = int.from_bytes(frame[24:32], "little")
        cpu.mode = await self._mode(cs)
        if not lib.ic_decode(code, len(code), cpu, insn):
            return None
        if insn.loads:
            operand = await self.stub.memory(insn.address, insn.size)
            if len(operand) < insn.size:
                return None
            ffi.memmove(self._data, operand, insn.size)
        if insn.stores and len(await self.stub.memory(insn.address, insn.size)) < insn.size:
            return None
        resume_at = self._known().iretq
        requests: list[bytes] = []
        if insn.needs_tsc:
            aux = self._known().tsc_aux
            cpu.tsc_aux = aux[vcpu] if vcpu < len(aux) else 0
            if self._known().clock is not None:
                resume_at = self._known().clock or 0
            else:
                cpu.tsc = await self._read_tsc()
        if not lib.ic_execute(insn, cpu, self._data):
            return None
        if insn.stores:
            requests.append(_write(insn.address, bytes(ffi.buffer(self._data, insn.size))))
        requests += registers.changes(cpu, self.stub.numbers)
        # RF was set by the fault so that the instruction could be tried again; it has been done.
        fresh = struct_frame(int(cpu.rip), int(cpu.rflags) & ~_RF, frame)
        requests.append(_write(registers.rsp, fresh))
        requests.append(b"P%x=%s" % (RIP, resume_at.to_bytes(8, "little").hex().encode()))
        self.translated[ffi.string(lib.ic_name(insn.op)).decode()] += 1
        return requests

    async def _code(self, rip: int) -> bytes:
        """The faulting instruction's bytes: at most 15, fewer where the next page is not mapped."""
        room = _PAGE - rip % _PAGE
        code = await self.stub.memory(rip, min(15, room))
        if room < 15 and len(code) == room:
            code += await self.stub.memory((rip + room) & _ALL_ONES, 15 - room)
        return code

    async def _mode(self, cs: int) -> int:
        """32 or 64, by the L bit of the code segment's descriptor.

        Linux's own selectors are known; any other 64-bit kernel's user code is taken for 64-bit
        unless it is Linux's 32-bit selector 0x23 (arch/x86/include/asm/segment.h).
        """
        return 32 if cs == 0x23 else 64

    async def _read_tsc(self) -> int:
        """Single-step an RDTSC that stands anywhere in the kernel's text near the entry."""
        vectors = self._known()
        start = vectors.entry & ~0xFFF
        code = await self.stub.memory(start, 0x8000)
        place = code.find(b"\x0f\x31")
        if place < 0:
            return 0
        before = (await self.stub.ask(b"g"))[0]
        address = (start + place).to_bytes(8, "little").hex().encode()
        await self.stub.ask(b"z1,%x,1" % vectors.entry, b"P%x=%s" % (RIP, address))
        await self.stub.step(_full(self._thread))
        after = Registers(_hex((await self.stub.ask(b"g"))[0], SIZE))
        await self.stub.ask(b"G" + before, b"Z1,%x,1" % vectors.entry)
        return int(after.general[3] << 32 | after.general[0])

    async def _pass(self, stop: Stop) -> None:
        """Let the guest's own handler run: step over the breakpoint at its first instruction."""
        entry = self._known().entry
        await self.stub.ask(b"z1,%x,1" % entry)
        await self.stub.step(_full(stop.thread))
        await self.stub.ask(b"Z1,%x,1" % entry)


def struct_frame(rip: int, flags: int, frame: bytes) -> bytes:
    """The frame's first 24 bytes (RIP, CS, RFLAGS) after the instruction was done."""
    return rip.to_bytes(8, "little") + frame[8:16] + flags.to_bytes(8, "little")


def _write(address: int, data: bytes) -> bytes:
    return b"M%x,%x:%s" % (address, len(data), data.hex().encode())


def _read(address: int, length: int) -> bytes:
    return b"m%x,%x" % (address, max(1, length))


def _bytes(text: bytes) -> bytes:
    """The answer to a read of memory; empty where it is not mapped."""
    return b"" if text.startswith(b"E") else _hex(text, 0)


def _full(thread: bytes) -> bytes:
    """A thread id in the multiprocess form that QEMU takes."""
    return b"p" + thread if b"." in thread else b"p1." + thread


def _number(thread: bytes) -> int:
    """The vCPU's number: threads count from one."""
    return int(thread.rsplit(b".", 1)[-1], 16) - 1


def _hex(text: bytes, size: int) -> bytes:
    try:
        data = bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError) as error:
        raise StubGoneError("the debug stub answers nonsense") from error
    if len(data) < size:
        raise StubGoneError("the debug stub gives too few registers")
    return data
