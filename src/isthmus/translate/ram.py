"""Which physical addresses are RAM of the guest, by QEMU's own map of them.

The debug stub reads and writes whatever is behind an address: reading a device has effects, and a
write goes into ROMs, too.  A guest decides where its page tables point, so that is asked for first.

Source: ``info mtree -f`` (QEMU system/memory.c, mtree_print_flatview), where one flat view after
the other lists its ranges as ``first-last (prio n, kind): name``.
"""

import re
from bisect import bisect_right

from isthmus.translate.rsp import Stub
from isthmus.values import Value

_VIEW = re.compile(r"^FlatView #\d+\r?\n(.*?)(?=^FlatView #|\Z)", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(r'^ AS "memory",', re.MULTILINE)
_RANGE = re.compile(r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (ram|rom)\):", re.MULTILINE)


class Ram(Value, frozen=True):
    """Ranges in order, each as (first, last address, whether it may be written)."""

    ranges: tuple[tuple[int, int, bool], ...]

    @classmethod
    def parse(cls, text: str) -> "Ram":
        """Read the answer to ``info mtree -f``; no ranges if it is none."""
        ranges = {
            (int(match[1], 16), int(match[2], 16), match[3] == "ram")
            for view in _VIEW.finditer(text)
            if _MEMORY.search(view[1])
            for match in _RANGE.finditer(view[1])
        }
        return cls(ranges=tuple(sorted(ranges)))

    def covers(self, address: int, *, write: bool) -> bool:
        """Whether the byte at ``address`` may be read, or written: a ROM may be read."""
        at = bisect_right(self.ranges, (address, 1 << 64, True)) - 1
        if at < 0:
            return False
        _, last, writable = self.ranges[at]
        return address <= last and (writable or not write)


async def find_ram(stub: Stub) -> Ram:
    """Ask QEMU."""
    return Ram.parse(await stub.command("info mtree -f"))
