"""The memory operands of an instruction: pages walked beforehand, a store put off."""

from isthmus.translate.machine import PageFaultError, UnansweredError
from isthmus.translate.outside.trap import Trap
from isthmus.translate.paging import PAGE, Reached, Refused, Space, walk
from isthmus.translate.ram import Ram, find_ram
from isthmus.translate.rsp import Stub, write_memory
from isthmus.translate.vectors import read_physical

_WALKS = 4096
_ALL_ONES = (1 << 64) - 1


class Operand:
    """The memory operands of a run of instructions as the core sees them.

    A load after a store of the same run has no answer: the store is not done yet, and it may have
    been to the same memory under another address.  The run ends there.
    """

    def __init__(self, frame: tuple[int, int]) -> None:
        self.known: dict[int, bytes] = {}
        self.writable: set[tuple[int, int]] = set()
        self.refused: PageFaultError | None = None
        self.wanted: tuple[int, int, bool] | None = None
        self.stored: list[tuple[int, bytes]] = []
        self._frame = frame
        self._before = 0

    def begin(self) -> None:
        """A new instruction, after one that is done."""
        self._before = len(self.stored)

    def again(self) -> None:
        """The instruction is executed once more: what it stored before was for nothing."""
        del self.stored[self._before :]
        self.wanted = None

    def touched(self, start: int, end: int) -> bool:
        """Whether something was stored there."""
        return any(at < end and at + len(data) > start for at, data in self.stored)

    def load(self, address: int, size: int) -> bytes:
        """Read what was fetched; see :class:`isthmus.translate.machine.Memory`."""
        if self._before:
            raise UnansweredError
        self._judge(address, size, write=False)
        data = self.known.get(address, b"")
        if len(data) < size:
            raise UnansweredError
        return data[:size]

    def store(self, address: int, data: bytes) -> None:
        """Note what is to be written."""
        start, end = self._frame
        if self._before and address < end and address + len(data) > start:
            raise UnansweredError  # below the stack pointer, where the exception frame still lies
        self._judge(address, len(data), write=True)
        if (address, len(data)) not in self.writable:
            raise UnansweredError
        self.stored.append((address, data))

    def _judge(self, address: int, size: int, *, write: bool) -> None:
        self.wanted = (address, size, write)
        if self.refused is not None:
            raise self.refused


class Pages:
    """Walks to operands, remembering where the page tables' entries lay."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._walks: dict[tuple[int, int], tuple[int, ...]] = {}
        self._ram: Ram | None = None

    def forget(self) -> None:
        """The guest is another one."""
        self._walks.clear()
        self._ram = None

    async def fetch(self, trap: Trap, operand: Operand) -> bool:
        """Walk to the operand's pages, and read it if it is to be read.

        Whether that could be done: not if the operand or a page table is no RAM of the guest, since
        reading a device is an act, and writing one, or a ROM, even more so.
        """
        assert operand.wanted is not None
        address, size, write = operand.wanted
        pages = [address]
        if address // PAGE != (address + size - 1) // PAGE:
            pages.append((address + size - 1) & -PAGE & _ALL_ONES)
        fresh: list[tuple[int, int]] = []
        for page in pages:
            result = await self.reach(trap.space, page, write=write)
            if isinstance(result, Refused):
                operand.refused = PageFaultError(page, result.error_code)
                return True
            if result is None:
                return False
            for place, entry in result.fresh:
                if await self._is_ram(place, write=True):  # else the CPU's mark is lost as well
                    fresh.append((place, entry))
        if fresh:
            marks = [write_memory(place, entry.to_bytes(8, "little")) for place, entry in fresh]
            await self._stub.ask(b"Qqemu.PhyMemMode:1", *marks, b"Qqemu.PhyMemMode:0")
        if write:
            operand.writable.add((address, size))
        else:
            operand.known[address] = await self._stub.memory(address, size)
        return True

    async def reach(self, space: Space, address: int, *, write: bool) -> Reached | Refused | None:
        """Walk; None if that leads out of the guest's RAM.

        A page walked before is walked again in one round trip, with all entries read.
        """
        key = (space.cr3, address // PAGE)
        if places := self._walks.get(key):
            entries = dict(zip(places, await read_physical(self._stub, list(places)), strict=True))
            result = _replay(space, address, entries, write=write)
            if isinstance(result, Refused):
                return result
            if result is not None and await self._is_ram(result.physical, write=write):
                return result
        steps = walk(space, address, write=write)
        try:
            place = next(steps)
            while await self._is_ram(place, write=False):
                (entry,) = await read_physical(self._stub, [place])
                place = steps.send(entry)
        except StopIteration as end:
            found: Reached | Refused = end.value
            if isinstance(found, Refused):
                return found
            if len(self._walks) >= _WALKS:
                self._walks.clear()
            self._walks[key] = tuple(place for place, _ in found.path)
            return found if await self._is_ram(found.physical, write=write) else None
        return None

    async def _is_ram(self, physical: int, *, write: bool) -> bool:
        """Whether that is memory of the guest.  Its map is read when it is first needed."""
        if self._ram is None:
            self._ram = await find_ram(self._stub)
        return self._ram.covers(physical, write=write)


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
