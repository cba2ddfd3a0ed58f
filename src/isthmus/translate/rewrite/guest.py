"""A paused guest's kernel, seen through QEMU's debug stub: where it lies, what stands in it.

The kernel's text is one stretch of physical memory (arch/x86/mm/ident_map.c; ``phys_base``), which
QEMU writes to a file in one step (``pmemsave``); asking the stub for it would take seconds.  Where
QEMU runs on another machine that file is not to be had, and the stub is asked for the sites alone.

KASLR moves the text by a multiple of 2 MiB (CONFIG_PHYSICAL_ALIGN): the one at which the page of
the #UD entry is the image's.  That the image is the right one is proved by its notes, which hold
the build's id and stay in memory (they are /sys/kernel/notes).
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from isthmus.errors import HypervisorError
from isthmus.translate.paging import Reached, Space
from isthmus.translate.rewrite.image import PAGE, KernelImage
from isthmus.translate.rsp import Stub
from isthmus.translate.vectors import UD_VECTOR, handler_of, reach, select
from isthmus.values import Value

_CPU = re.compile(r"CPU#(\d{1,4})\s*\n(.*?)(?=\nCPU#|\Z)", re.DOTALL)
_IDT = re.compile(r"IDT=\s*([0-9a-f]{8,16}) [0-9a-f]{8}")
_RIP = re.compile(r"\bRIP=([0-9a-f]{16})")
_CONTROL = re.compile(r"CR(0|3|4)=([0-9a-f]{8,16})")
_PTI_SWITCH = 1 << 12
_ALIGNMENT, _SLIDES = 2 << 20, 512
# Of the entry's page, which is full of patch sites (6.12: a tenth differs); other pages of text are
# alike in a few hundredths.  The notes prove it then.
_ALIKE = 0.6
_PACKET = 0x400  # QEMU gdbstub/gdbstub.c, MAX_PACKET_LENGTH 4096: in hexadecimal digits


class UnknownKernelError(HypervisorError):
    """The guest does not run the kernel of this image, or no kernel that can be found."""


class AfarError(UnknownKernelError):
    """QEMU has written a file, and it is not here: QEMU runs on another machine."""


class Standing(Value, frozen=True):
    """Where the guest stands: its #UD entry, each vCPU's RIP, and an address space of its kernel.

    ``vcpu`` is one whose tables ``space`` are.
    """

    entry: int
    rips: tuple[int, ...]
    space: Space
    vcpu: int


class Placed(Value, frozen=True):
    """Where the image lies: what to add to its linear addresses, and to make them physical.

    ``afar``: QEMU runs on another machine, whose files are not to be had.
    """

    slide: int
    physical: int
    afar: bool = False

    def place(self, address: int) -> int:
        """The physical address of a linear one of the image."""
        return address + self.physical


async def standing(stub: Stub) -> Standing:
    """Read all vCPUs' RIP and the one #UD entry.

    :raises UnknownKernelError: the vCPUs have none, or different ones.
    """
    text = await stub.command("info registers -a")
    rips: list[int] = []
    found: Standing | None = None
    for match in _CPU.finditer(text):
        rip, idt = _RIP.search(match[2]), _IDT.search(match[2])
        control = {int(name): int(value, 16) for name, value in _CONTROL.findall(match[2])}
        if idt is None or len(control) < 3:
            continue
        # In 32-bit code QEMU names it EIP; no site lies there.
        rips += [int(rip[1], 16)] if rip is not None else []
        await select(stub, int(match[1]))
        entry = handler_of(await stub.memory(int(idt[1], 16) + UD_VECTOR * 16, 16), any_stack=True)
        if entry is None:
            continue
        if found is not None and found.entry != entry:
            raise UnknownKernelError("the vCPUs have different entries for #UD")
        found = Standing(
            entry=entry,
            rips=(),
            space=Space(cr0=control[0], cr3=control[3], cr4=control[4], user=False),
            vcpu=int(match[1]),
        )
    if found is None:
        raise UnknownKernelError("no vCPU has an entry for #UD")
    return Standing(entry=found.entry, rips=tuple(rips), space=found.space, vcpu=found.vcpu)


async def place(stub: Stub, where: Standing, image: KernelImage, folder: Path) -> Placed:
    """Find the image in the guest and prove that it is the one.

    :raises UnknownKernelError: it is not.
    """
    await select(stub, where.vcpu)
    page = await stub.memory(where.entry & -PAGE, PAGE)
    slide = find_slide(image, where.entry & -PAGE, page)
    physical = None
    for cr3 in (where.space.cr3 & ~_PTI_SWITCH, where.space.cr3):
        # With page-table isolation a vCPU may have been stopped on the user's tables.
        space = Space(cr0=where.space.cr0, cr3=cr3, cr4=where.space.cr4, user=False)
        if isinstance(found := await reach(stub, space, where.entry, write=False), Reached):
            physical = found.physical - where.entry
            break
    if physical is None:
        raise UnknownKernelError("the #UD entry is not mapped")
    placed = Placed(slide=slide, physical=slide + physical)
    identity = image.identity()
    if identity is None:
        raise UnknownKernelError("the kernel image has no notes to know it by")
    address, known = identity
    at = placed.place(address)
    try:
        live = await dump(stub, at, len(known), folder)
    except AfarError:
        placed = Placed(slide=placed.slide, physical=placed.physical, afar=True)
        (live,) = await pieces(stub, [(at, len(known))])
    if live != known:
        raise UnknownKernelError(
            "the guest does not run the kernel of this image: its notes differ"
        )
    return placed


def find_slide(image: KernelImage, address: int, page: bytes) -> int:
    """By how much KASLR has moved the image, from one page of its text that was read live.

    :raises UnknownKernelError: the page is not the image's.
    """
    best, slide = 0.0, 0
    for step in range(_SLIDES):
        candidate = step * _ALIGNMENT
        original = image.read(address - candidate, len(page))
        if not original or not page:
            continue
        alike = sum(a == b for a, b in zip(original, page, strict=True)) / len(page)
        if alike > best:
            best, slide = alike, candidate
    if best < _ALIKE:
        raise UnknownKernelError(
            "the guest does not run the kernel of this image: its text differs"
        )
    return slide


async def dump(stub: Stub, physical: int, size: int, folder: Path) -> bytes:
    """Physical memory, by way of a file that QEMU writes into ``folder`` and we remove.

    :raises UnknownKernelError: QEMU cannot write it.
    :raises AfarError: it has written it on another machine.
    """
    path = folder / "memory.part"
    try:
        said = await stub.command(f'pmemsave {physical} {size} "{path}"')
        if not path.exists() and not said.strip():
            raise AfarError("QEMU writes its files on another machine")
        data = path.read_bytes() if path.exists() else b""
    finally:
        path.unlink(missing_ok=True)
    if len(data) != size:
        raise UnknownKernelError(f"QEMU cannot save the guest's memory: {said.strip()[:200]}")
    return data


async def pieces(stub: Stub, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """Pieces of physical memory (address, size), asked of the stub all at once.

    :raises UnknownKernelError: one is no memory.
    """
    parts = [
        (at + done, min(_PACKET, size - done))
        for at, size in places
        for done in range(0, size, _PACKET)
    ]
    answers = await stub.ask(
        b"Qqemu.PhyMemMode:1", *(b"m%x,%x" % part for part in parts), b"Qqemu.PhyMemMode:0"
    )
    try:
        read = iter([bytes.fromhex(answer.decode()) for answer in answers[1:-1]])
    except ValueError as error:
        raise UnknownKernelError("the guest has no memory where its kernel should be") from error
    return [b"".join(next(read) for _ in range(0, size, _PACKET)) for _, size in places]


async def write(stub: Stub, writes: Collection[tuple[int, bytes]]) -> bool:
    """Write physical memory, a site at a time; whether all reads back as written."""
    if not writes:
        return True
    orders = [b"M%x,%x:%s" % (at, len(data), data.hex().encode()) for at, data in writes]
    reads = [b"m%x,%x" % (at, len(data)) for at, data in writes]
    answers = await stub.ask(
        b"Qqemu.PhyMemMode:1", *orders, *reads, b"Qqemu.PhyMemMode:0"
    )  # fmt: skip
    read = answers[1 + len(orders) : -1]
    wanted = [data.hex().encode() for _, data in writes]
    return all(answer == b"OK" for answer in answers[: 1 + len(orders)]) and read == wanted
