"""Where a guest takes #UD, and how to get out of there without its help.

When a CPU meets an instruction it lacks it raises #UD (vector 6) and jumps through gate 6 of the
interrupt descriptor table.  Gate and handler are found from outside, after each move anew: the
IDT's base is a register (``info registers``), the gate is read from guest memory, and it holds
the handler's address (Intel SDM vol. 3A, 6.14.1).  No symbols are needed, so KASLR, the kernel's
version and even its kind do not matter.

At the handler's first instruction the CPU has pushed RIP, CS, RFLAGS, RSP and SS (40 bytes, #UD
has no error code), interrupts are off, and nothing has been changed yet: not GS, not CR3.  So one
IRETQ executed there, with the frame's RIP advanced, ends the exception as if it had never been.
We do not inject that IRETQ: one stands near the handler (the kernel's own return path).  With
page-table isolation the CPU still walks the *user's* tables at that point, which map the entry
text only; so the IRETQ has to lie in text that both tables map, and that is checked by walking
both (Linux keeps the two top tables side by side: arch/x86/include/asm/pgtable.h,
PTI_PGTABLE_SWITCH_BIT = bit 12 of CR3).

Some instructions need the CPU itself: RDTSCP the time-stamp counter at the moment of resuming,
which no register of the stub tells, and the MMX instructions the x87 tags, which the stub cannot
write.  A few bytes, ``RDTSC; IRETQ`` and the like, are written into padding between the kernel's
functions: a run of at least 64 bytes 0xCC (INT3), which no healthy kernel executes; the guest is
resumed *there*.  We call those bytes the island.  They are taken out again before the guest leaves.
Where a guest has no such padding, the translator steps over the bytes instead (see
:mod:`isthmus.translate.outside`).

A #UD that is not ours has to go through the handler, on whose first instruction our breakpoint
sits.  If that instruction is a kind of NOP (Linux: the place of CLAC, or ENDBR64), the guest
simply resumes behind it.
"""

import re

from isthmus.errors import HypervisorError
from isthmus.translate.paging import PAGE, Reached, Refused, Space, walk
from isthmus.translate.rsp import Stub, unhex
from isthmus.translate.tables import COMMAND, plugged, read_tables
from isthmus.values import Value

UD_VECTOR = 6
SEARCH_BYTES = 0x8000
IRETQ = bytes.fromhex("48cf")
_PADDING = re.compile(rb"\xcc{64,}")
_PTI_SWITCH = 1 << 12

# What a handler may begin with that changes nothing (Intel SDM vol. 2B, NOP; vol. 2A, ENDBR64).
_NOPS = tuple(
    bytes.fromhex(text)
    for text in ("f30f1efa", "90", "6690", "0f1f00", "0f1f4000", "0f1f440000",
                 "660f1f440000", "0f1f8000000000")
)  # fmt: skip

# Linux keeps cpu | node << 12, which it also writes to TSC_AUX, in the limit of GDT entry 15, a
# read-only data segment for users (arch/x86/include/asm/segment.h, GDT_ENTRY_CPUNODE; the vDSO
# reads it with LSL).
_CPUNODE_ENTRY = 15


class Island(Value, frozen=True):
    """Where the guest's own CPU finishes what the stub cannot do, each piece ended by IRETQ."""

    address: int

    PIECES = (
        ("rdtsc", bytes.fromhex("0f31")),
        ("enter-mmx", bytes.fromhex("0f6fc0")),  # MOVQ MM0,MM0: TOP 0, all tags valid
        ("leave-mmx", bytes.fromhex("0f77")),  # EMMS: all tags empty
    )

    @classmethod
    def content(cls) -> bytes:
        """The bytes to be written."""
        return b"".join(code + IRETQ for _, code in cls.PIECES)

    def piece(self, name: str) -> int:
        """The address of one piece."""
        at = self.address
        for known, code in self.PIECES:
            if known == name:
                return at
            at += len(code) + len(IRETQ)
        raise KeyError(name)

    @classmethod
    def padding(cls, found: bytes) -> bytes:
        """What belongs where ``found`` is: INT3 instead of what a killed translator left there."""
        return b"\xcc" * len(found) if found == cls.content() else found

    def covers(self, address: int) -> bool:
        """Whether a vCPU at ``address`` would execute bytes of ours."""
        return self.address <= address < self.address + len(self.content())


class NoEntryError(HypervisorError):
    """The guest's #UD entry cannot be found or used."""


class Vcpu(Value, frozen=True):
    """Tables of one vCPU: linear addresses of IDT and GDT, what TSC_AUX holds, and gate 6."""

    number: int
    idt: int
    gdt: int
    tsc_aux: int
    gate: bytes


class Vectors(Value, frozen=True):
    """What the translator needs to know of a guest: addresses in its memory.

    ``entry``: the #UD handler's first instruction; ``after``: a place behind it that is as good a
    beginning, None if there is none; ``iretq``: where to resume; ``island``: None if the guest has
    no padding; ``vcpus``: those that have been started; ``plugged``: how many there are.
    """

    entry: int
    after: int | None
    iretq: int
    island: Island | None
    vcpus: tuple[Vcpu, ...]
    plugged: int

    def vcpu(self, number: int) -> Vcpu | None:
        """One vCPU's tables."""
        return next((vcpu for vcpu in self.vcpus if vcpu.number == number), None)

    def ours(self, rip: int) -> bool:
        """Whether a vCPU that stands at ``rip`` could not go on without the translator."""
        return rip == self.entry or (self.island is not None and self.island.covers(rip))


async def find_vectors(stub: Stub) -> Vectors:
    """Find the #UD entry of the stopped guest.

    :raises NoEntryError: no long mode, no IDT, different handlers on different vCPUs, or no IRETQ.
    """
    entries: set[int] = set()
    vcpus: list[Vcpu] = []
    space: Space | None = None
    text = await stub.command(COMMAND)
    for tables in read_tables(text):
        await select(stub, tables.number)
        gate = await stub.memory(tables.idt + UD_VECTOR * 16, 16)
        found = handler_of(gate, any_stack=True)
        if found is None or tables.idt_limit < UD_VECTOR * 16 + 15:
            continue
        entries.add(found)
        vcpus.append(
            Vcpu(
                number=tables.number,
                idt=tables.idt,
                gdt=tables.gdt,
                tsc_aux=await _tsc_aux(stub, tables.gdt, tables.gdt_limit, tables.number),
                gate=gate,
            )
        )
        space = space or tables.space
    if len(entries) > 1:
        raise NoEntryError(
            f"{len(entries)} entries for #UD found in the guest: its vCPUs have handlers of their "
            "own",
            remedy="level the guest instead: only kernels with one #UD handler are translated",
        )
    if space is None:
        raise NoEntryError(
            "0 entries for #UD found in the guest", remedy="it must run a 64-bit kernel"
        )
    await select(stub, vcpus[0].number)
    return await _around(stub, entries.pop(), tuple(vcpus), space, plugged(text))


async def unchanged(stub: Stub, vectors: Vectors) -> bool:
    """Whether every vCPU still takes #UD where it did, and there are no other vCPUs.

    Not so after a reboot or a kexec, or when a vCPU was plugged in.
    """
    if moved(await stub.command(COMMAND), vectors):
        return False
    for vcpu in vectors.vcpus:
        await select(stub, vcpu.number)
        if await stub.memory(vcpu.idt + UD_VECTOR * 16, 16) != vcpu.gate:
            return False
    return True


def moved(text: str, vectors: Vectors) -> bool:
    """Whether a vCPU's tables lie elsewhere, or there are others, by ``info registers -a``.

    One that is not started yet counts: QEMU gives a breakpoint to the vCPUs that there are.
    """
    known = {(vcpu.number, vcpu.idt, vcpu.gdt) for vcpu in vectors.vcpus}
    now = {(tables.number, tables.idt, tables.gdt) for tables in read_tables(text)}
    return now != known or plugged(text) != vectors.plugged


async def _around(
    stub: Stub, entry: int, vcpus: tuple[Vcpu, ...], space: Space, number: int
) -> Vectors:
    """Search the text behind the entry, and where that is not enough before it."""
    start = entry & -PAGE
    code = await stub.memory(start, SEARCH_BYTES)
    both = await _both_tables(stub, entry, space)
    iretq = await _usable(stub, start, [m.start() for m in re.finditer(IRETQ, code)], both)
    if iretq is None:
        start -= SEARCH_BYTES
        code = await stub.memory(start, SEARCH_BYTES) or code
        iretq = await _usable(stub, start, [m.start() for m in re.finditer(IRETQ, code)], both)
    if iretq is None:
        raise NoEntryError("no IRETQ near the guest's #UD entry", remedy="level the guest instead")
    # Aligned, and well inside the run, so that nobody's fall-through is near.
    places = [(m.start() + 31) & ~15 for m in _PADDING.finditer(code)]
    if (left := code.find(Island.content())) >= 0:
        places = [left]
    island = await _usable(stub, start, places, both)
    first = code[entry - start : entry - start + 8] if start <= entry else b""
    nop = next((nop for nop in _NOPS if first.startswith(nop)), None)
    return Vectors(
        entry=entry,
        after=entry + len(nop) if nop else None,
        iretq=iretq,
        island=Island(address=island) if island is not None else None,
        vcpus=vcpus,
        plugged=number,
    )


async def _both_tables(stub: Stub, entry: int, space: Space) -> list[Space]:
    """The spaces in which a resume may happen: one, or with page-table isolation two."""
    here = await reach(stub, space, entry, write=False)
    other = Space(cr0=space.cr0, cr3=space.cr3 ^ _PTI_SWITCH, cr4=space.cr4, user=False)
    there = await reach(stub, other, entry, write=False)
    isolated = (
        isinstance(here, Reached) and isinstance(there, Reached) and here.physical == there.physical
    )
    return [space, other] if isolated else [space]


async def _usable(stub: Stub, start: int, places: list[int], spaces: list[Space]) -> int | None:
    """The first of the places that every one of the spaces maps to the same memory."""
    for place in places[:64]:
        address = start + place
        found = [await reach(stub, space, address, write=False) for space in spaces]
        if (
            all(isinstance(one, Reached) for one in found)
            and len({one.physical for one in found if isinstance(one, Reached)}) == 1
        ):
            return address
    return None


async def reach(stub: Stub, space: Space, address: int, *, write: bool) -> Reached | Refused:
    """Walk the guest's page tables through the stub, one round trip a level."""
    steps = walk(space, address, write=write)
    try:
        place = next(steps)
        while True:
            (entry,) = await read_physical(stub, [place])
            place = steps.send(entry)
    except StopIteration as end:
        result: Reached | Refused = end.value
        return result


async def read_physical(stub: Stub, places: list[int]) -> list[int]:
    """Read quadwords of physical memory in one write; what cannot be read counts as 0."""
    answers = await stub.ask(
        b"Qqemu.PhyMemMode:1", *(b"m%x,8" % place for place in places), b"Qqemu.PhyMemMode:0"
    )
    return [quadword(answer) for answer in answers[1:-1]]


def quadword(answer: bytes) -> int:
    """The number in the answer to reading a quadword; 0 if it could not be read."""
    return int.from_bytes(unhex(answer), "little") if len(answer) == 16 else 0


def handler_of(gate: bytes, *, any_stack: bool = False) -> int | None:
    """The handler in a present 64-bit gate (Intel SDM vol. 3A, figure 6-8), None if it has none.

    :param any_stack: take a gate with a stack of its own (IST) too; entering one by a jump would
        need more than the jump.
    """
    if len(gate) < 16 or not gate[5] & 0x80 or (gate[4] & 7 and not any_stack):
        return None
    return int.from_bytes(gate[0:2] + gate[6:8] + gate[8:12], "little")


async def _tsc_aux(stub: Stub, gdt: int, limit: int, number: int) -> int:
    """What Linux keeps for this vCPU; for another kernel, which nobody can ask, its number."""
    offset = _CPUNODE_ENTRY * 8
    descriptor = await stub.memory(gdt + offset, 8) if limit >= offset + 7 else b""
    # Present, for users, data (Linux: type 5); byte granular.
    if len(descriptor) < 8 or descriptor[5] & 0xF8 != 0xF0 or descriptor[6] & 0x80:
        return number
    return int.from_bytes(descriptor[0:2], "little") | (descriptor[6] & 0x0F) << 16


async def select(stub: Stub, vcpu: int) -> None:
    """Choose the vCPU whose registers and address space the next requests mean."""
    await stub.ask(b"Hgp1.%x" % (vcpu + 1))
