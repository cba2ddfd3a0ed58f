"""The memory operands of an instruction: pages walked beforehand, a store put off."""

from isthmus.translate.machine import PageFaultError, UnansweredError
from isthmus.translate.outside.trap import Trap
from isthmus.translate.paging import PAGE, Reached, Refused, Space, walk
from isthmus.translate.rsp import Stub, write_memory
from isthmus.translate.vectors import reach, read_physical

_WALKS = 4096
_ALL_ONES = (1 << 64) - 1


class Operand:
    """The memory operand of one instruction as the core sees it."""

    def __init__(self) -> None:
        self.known: dict[int, bytes] = {}
        self.writable: set[int] = set()
        self.refused: PageFaultError | None = None
        self.wanted: tuple[int, int, bool] | None = None
        self.stored: tuple[int, bytes] | None = None

    def load(self, address: int, size: int) -> bytes:
        """Read what was fetched; see :class:`isthmus.translate.machine.Memory`."""
        self._judge(address, size, write=False)
        data = self.known.get(address, b"")
        if len(data) < size:
            raise UnansweredError
        return data

    def store(self, address: int, data: bytes) -> None:
        """Note what is to be written."""
        self._judge(address, len(data), write=True)
        if address not in self.writable:
            raise UnansweredError
        self.stored = (address, data)

    def _judge(self, address: int, size: int, *, write: bool) -> None:
        self.wanted = (address, size, write)
        if self.refused is not None:
            raise self.refused


class Pages:
    """Walks to operands, remembering where the page tables' entries lay."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._walks: dict[tuple[int, int], tuple[int, ...]] = {}

    def forget(self) -> None:
        """The guest is another one."""
        self._walks.clear()

    async def fetch(self, trap: Trap, operand: Operand) -> None:
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
            await self._stub.ask(b"Qqemu.PhyMemMode:1", *marks, b"Qqemu.PhyMemMode:0")
        if write:
            operand.writable.add(address)
        else:
            operand.known[address] = await self._stub.memory(address, size)

    async def _reach(self, space: Space, address: int, *, write: bool) -> Reached | Refused:
        """Walk; a page walked before is walked again in one round trip, with all entries read."""
        key = (space.cr3, address // PAGE)
        if places := self._walks.get(key):
            entries = dict(zip(places, await read_physical(self._stub, list(places)), strict=True))
            result = _replay(space, address, entries, write=write)
            if result is not None:
                return result
        result = await reach(self._stub, space, address, write=write)
        if isinstance(result, Reached):
            if len(self._walks) >= _WALKS:
                self._walks.clear()
            self._walks[key] = tuple(place for place, _ in result.path)
        return result


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
