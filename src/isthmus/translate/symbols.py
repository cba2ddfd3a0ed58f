"""Names for the addresses of a guest's kernel, from its System.map or a copy of /proc/kallsyms.

Both have lines ``address type name`` (nm(1); Documentation of /proc/kallsyms in proc(5)).  The
addresses in System.map are those of the link; the running kernel stands elsewhere (KASLR).  By how
much is known from the #UD handler, whose address the translator has: its symbol is
``asm_exc_invalid_op`` (since Linux 5.8) or ``invalid_op`` (arch/x86/entry/entry_64.S).
"""

import bisect
from pathlib import Path

from isthmus.errors import InputError
from isthmus.values import read_bytes

ENTRIES = ("asm_exc_invalid_op", "invalid_op")
_LIMIT = 64 << 20
_KERNEL = 1 << 63
_FARTHEST = 1 << 20
"""An address so far behind a symbol belongs to none: it is in a module or in made code."""


class Symbols:
    """The symbols of one running kernel."""

    def __init__(self, places: list[tuple[int, str]], slide: int) -> None:
        self._addresses = [address for address, _ in places]
        self._names = [name for _, name in places]
        self._slide = slide

    def name(self, address: int) -> str:
        """``symbol+0x12``, empty for a program's address and for what no symbol is near."""
        if not address & _KERNEL:
            return ""
        at = address - self._slide
        index = bisect.bisect_right(self._addresses, at) - 1
        if index < 0 or at - self._addresses[index] > _FARTHEST:
            return ""
        return f"{self._names[index]}+{at - self._addresses[index]:#x}"


def read_symbols(path: Path, entry: int) -> Symbols:
    """Read a file of symbols for the kernel whose #UD handler stands at ``entry``.

    :raises InputError: it is no such file, or of another kernel.
    """
    places = []
    for line in read_bytes(path, limit=_LIMIT).split(b"\n"):
        words = line.split()
        if len(words) >= 3 and words[1] in b"tTwW":
            try:
                places.append((int(words[0], 16), words[2].decode("ascii", "replace")))
            except ValueError:
                break
    places.sort()
    known = {name: address for address, name in places}
    handler = next((known[name] for name in ENTRIES if name in known), None)
    if handler is None:
        raise InputError(
            f"{path}: no symbols of a Linux kernel",
            remedy="name its System.map, or a copy of /proc/kallsyms that root has made in it",
        )
    if (entry - handler) % 0x1000 or handler == 0:
        raise InputError(
            f"{path}: symbols of another kernel, or without addresses",
            remedy="take them from the guest: root reads /proc/kallsyms there",
        )
    return Symbols(places, entry - handler)
