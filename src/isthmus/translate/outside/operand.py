"""The memory operands of an instruction: pages walked beforehand, a store put off."""

from isthmus.translate.machine import PageFaultError, UnansweredError
from isthmus.translate.paging import PAGE, Reached, Refused, Space, walk
from isthmus.translate.ram import Ram, find_ram
from isthmus.translate.registers import Registers
from isthmus.translate.rsp import Stub, unhex, write_memory
from isthmus.translate.vectors import quadword, read_physical
from isthmus.values import Value

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


class _Walk(Value, frozen=True):
    """Where a walk went: the entries' addresses, the page, and whether it may be written as RAM."""

    places: tuple[int, ...]
    frame: int
    write: bool


class Pages:
    """Walks to operands, remembering where the page tables' entries lay."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._walks: dict[tuple[int, int], _Walk] = {}
        self._ram: Ram | None = None
        self._held: set[tuple[int, int]] = set()

    def forget(self) -> None:
        """The guest is another one."""
        self._walks.clear()
        self._held.clear()
        self._ram = None

    def doubt(self) -> None:
        """What :meth:`holds` has found is some time ago."""
        self._held.clear()

    async def holds(self, registers: Registers, address: int, size: int) -> bool:
        """Whether a frame of the CPU's own can lie there: in RAM that it may write.

        The answer is remembered until :meth:`doubt`: it is asked at each trap.
        """
        cr3 = registers.control(3)
        for page in {address & -PAGE, (address + size - 1) & -PAGE & _ALL_ONES}:
            if (cr3, page) in self._held:
                continue
            space = registers.space(user=False)
            if await self._at_once(space, [page], 1, write=True) is None and not isinstance(
                await self.reach(space, page, write=True), Reached
            ):
                return False
            if len(self._held) >= _WALKS:
                self._held.clear()
            self._held.add((cr3, page))
        return True

    async def fetch(self, space: Space, operand: Operand) -> bool:
        """Walk to the operand's pages, and read it if it is to be read.

        Whether that could be done: not if the operand or a page table is no RAM of the guest, since
        reading a device is an act, and writing one, or a ROM, even more so.
        """
        assert operand.wanted is not None
        address, size, write = operand.wanted
        pages = [address]
        if address // PAGE != (address + size - 1) // PAGE:
            pages.append((address + size - 1) & -PAGE & _ALL_ONES)
        data = await self._at_once(space, pages, size, write=write)
        if data is not None:
            if write:
                operand.writable.add((address, size))
            else:
                operand.known[address] = data
            return True
        fresh: list[tuple[int, int]] = []
        for page in pages:
            result = await self.reach(space, page, write=write)
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
        """Walk, one round trip a level; None if that leads out of the guest's RAM."""
        key = (space.cr3, address // PAGE)
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
            if not await self._is_ram(found.physical, write=write):
                return None
            places = tuple(place for place, _ in found.path)
            self._walks[key] = _Walk(places=places, frame=found.physical & -PAGE, write=write)
            return found
        return None

    async def _at_once(
        self, space: Space, pages: list[int], size: int, *, write: bool
    ) -> bytes | None:
        """The operand, if all its pages have been walked to before and the way is still the same.

        One round trip: the entries and the memory where they led last time are read together.  An
        operand that is to be written is not read, and gives no bytes.
        """
        walks = [self._walks.get((space.cr3, page // PAGE)) for page in pages]
        known = [one for one in walks if one is not None and (one.write or not write)]
        if len(known) < len(pages):
            return None
        requests = [b"m%x,8" % place for one in known for place in one.places]
        entries = len(requests)
        left = size
        for page, one in zip(pages, known, strict=True):
            part = min(left, PAGE - page % PAGE)
            left -= part
            if not write:
                requests.append(b"m%x,%x" % (one.frame + page % PAGE, part))
        answers = (await self._stub.ask(b"Qqemu.PhyMemMode:1", *requests, b"Qqemu.PhyMemMode:0"))[
            1:-1
        ]
        values = dict(
            zip(
                (place for one in known for place in one.places),
                (quadword(answer) for answer in answers[:entries]),
                strict=True,
            )
        )
        for page, one in zip(pages, known, strict=True):
            result = _replay(space, page, values, write=write)
            if not isinstance(result, Reached) or result.fresh:
                return None
            if result.physical & -PAGE != one.frame:
                return None
        data = b"".join(unhex(answer) for answer in answers[entries:] if answer[:1] != b"E")
        return data if write or len(data) == size else None

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
