"""What a selector means: the size of a code segment, and the bases outside 64-bit mode."""

from typing import Any

from isthmus.translate.outside.trap import Trap
from isthmus.translate.rsp import Stub

_MODES = 64  # remembered


class Segments:
    """Reads descriptors of the guest's global tables, and remembers the modes."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._modes: dict[tuple[int, int], int] = {}

    def forget(self) -> None:
        """The guest is another one."""
        self._modes.clear()

    async def mode(self, trap: Trap) -> int | None:
        """64, 32 or 16, by the code segment's descriptor; None if that cannot be read.

        Bits L and D: Intel SDM vol. 3A, 3.4.5.  A selector keeps its meaning while the guest runs,
        except in the local table, which is a process's own.
        """
        key = (trap.vcpu, trap.cs)
        if key not in self._modes:
            descriptor = await self._descriptor(trap, trap.cs)
            if descriptor is None or len(self._modes) > _MODES:
                return None
            self._modes[key] = 64 if descriptor[6] & 0x20 else 32 if descriptor[6] & 0x40 else 16
        return self._modes[key]

    async def bases(self, trap: Trap, state: Any) -> None:
        """Bases of ES, CS, SS and DS outside 64-bit mode; FS and GS came with the registers."""
        selectors = trap.registers.data[140:156]  # CS SS DS ES, 4 bytes each
        data, extra = (int.from_bytes(selectors[at : at + 2], "little") for at in (8, 12))
        for index, selector in enumerate((extra, trap.cs, trap.ss, data)):
            descriptor = await self._descriptor(trap, selector)
            state.segment_base[index] = (
                int.from_bytes(descriptor[2:5] + descriptor[7:8], "little") if descriptor else 0
            )

    async def _descriptor(self, trap: Trap, selector: int) -> bytes | None:
        if trap.tables is None or selector & 4 or selector < 4:
            return None
        descriptor = await self._stub.memory(trap.tables.gdt + (selector & 0xFFF8), 8)
        return descriptor if len(descriptor) == 8 else None
