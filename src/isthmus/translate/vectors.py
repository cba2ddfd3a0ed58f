"""Where a guest takes #UD, and how to get out of there without its help.

When a CPU meets an instruction it lacks it raises #UD (vector 6) and jumps through gate 6 of the
interrupt descriptor table. Gate and handler are found from outside, after each move anew: the
IDT's base is a register (``info registers``), the gate is read from guest memory, and it holds
the handler's address (Intel SDM vol. 3A, 6.14.1). No symbols are needed, so KASLR, the kernel's
version and even its kind do not matter.

At the handler's first instruction the CPU has pushed RIP, CS, RFLAGS, RSP and SS (40 bytes, #UD
has no error code), interrupts are off, and nothing has been changed yet: not GS, not CR3. So one
IRETQ executed there, with the frame's RIP advanced, ends the exception as if it had never been.
We do not inject that IRETQ: one stands near the handler (the kernel's own return path), in text
that is mapped in both page tables of a guest with page-table isolation.

RDTSCP needs the time-stamp counter at the moment of resuming, which no register of the stub
tells. The CPU itself shall read it: the four bytes ``RDTSC; IRETQ`` are written into padding
between the kernel's functions (bytes 0xCC that are never executed), and the guest is resumed
*there*. They are taken out again before the guest leaves. A guest without such padding is served
by single-stepping an RDTSC.
"""

import re

from isthmus.errors import HypervisorError
from isthmus.translate.rsp import Stub
from isthmus.values import Value

UD_VECTOR = 6
SEARCH_BYTES = 0x8000
RDTSC_IRETQ = bytes.fromhex("0f3148cf")
_PADDING = re.compile(rb"\xcc{8,}")
_CPU = re.compile(r"CPU#(\d+)\s*\n(.*?)(?=\nCPU#|\Z)", re.DOTALL)
_GDT = re.compile(r"GDT=\s*([0-9a-f]{8,16}) ([0-9a-f]{8})")
_IDT = re.compile(r"IDT=\s*([0-9a-f]{8,16}) ([0-9a-f]{8})")

# Linux keeps cpu | node << 12, which it also writes to TSC_AUX, in the limit of GDT entry 15
# (arch/x86/include/asm/segment.h, GDT_ENTRY_CPUNODE; the vDSO reads it with LSL).
_CPUNODE_ENTRY = 15


class NoEntryError(HypervisorError):
    """The guest's #UD entry cannot be found or used."""


class Vectors(Value, frozen=True):
    """What the translator needs to know of a guest: addresses in its memory.

    ``entry``: the #UD handler's first instruction; ``iretq``: where to resume; ``clock``: where
    ``RDTSC; IRETQ`` may be written, None if there is no padding; ``tsc_aux`` for each vCPU.
    """

    entry: int
    iretq: int
    clock: int | None
    tsc_aux: tuple[int, ...]


async def find_vectors(stub: Stub) -> Vectors:
    """Find the #UD entry of the stopped guest.

    :raises NoEntryError: no long mode, no IDT, different handlers on different vCPUs, or no IRETQ.
    """
    text = await stub.command("info registers -a")
    entries = set()
    aux = []
    for number, registers in _CPU.findall(text):
        await _select(stub, int(number))
        idt, gdt = _IDT.search(registers), _GDT.search(registers)
        if idt is None or int(idt[2], 16) < UD_VECTOR * 16 + 15:
            continue  # a vCPU that has not been started
        gate = await stub.memory(int(idt[1], 16) + UD_VECTOR * 16, 16)
        if len(gate) == 16 and gate[5] & 0x80:
            entries.add(_offset(gate))
        aux.append(await _tsc_aux(stub, int(gdt[1], 16)) if gdt else 0)
    await _select(stub, 0)
    if len(entries) != 1:
        raise NoEntryError(
            f"{len(entries)} entries for #UD found in the guest",
            remedy="it must run a 64-bit kernel with one interrupt table",
        )
    entry = entries.pop()
    start = entry & ~0xFFF
    code = await stub.memory(start, SEARCH_BYTES)
    iretq = code.find(b"\x48\xcf")
    if iretq < 0:
        raise NoEntryError("no IRETQ near the guest's #UD entry", remedy="level the guest instead")
    padding = _PADDING.search(code)
    return Vectors(
        entry=entry,
        iretq=start + iretq,
        clock=start + padding.start() + 2 if padding else None,
        tsc_aux=tuple(aux),
    )


def _offset(gate: bytes) -> int:
    """The handler's address in a 64-bit gate (Intel SDM vol. 3A, figure 6-8)."""
    low, middle, high = gate[0:2], gate[6:8], gate[8:12]
    return int.from_bytes(low + middle + high, "little")


async def _tsc_aux(stub: Stub, gdt: int) -> int:
    descriptor = await stub.memory(gdt + _CPUNODE_ENTRY * 8, 8)
    if len(descriptor) < 8 or not descriptor[5] & 0x80:
        return 0
    return int.from_bytes(descriptor[0:2], "little") | (descriptor[6] & 0x0F) << 16


async def _select(stub: Stub, vcpu: int) -> None:
    """Choose the vCPU whose registers and address space the next requests mean."""
    await stub.ask(b"Hgp1.%x" % (vcpu + 1))
