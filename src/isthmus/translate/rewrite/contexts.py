"""Whether some saved context of the guest stands within a site: its memory is looked through.

A context that was interrupted in the middle of a site has that address in memory, on a stack, in
an aligned quadword.  For the kernel's text the exact address is looked for: any word that happens
to be equal counts, too, which only leaves a site as it is.  The vDSO lies elsewhere in each
program, so there it is the place within the page, in a word that is followed as only a saved
instruction pointer is: by CS = 0x33 (exception frame), or by EFLAGS and then CS in 16 bits (signal
frame, arch/x86/include/uapi/asm/sigcontext.h).  A word at a page's end may go on in any other page
and counts.  What is swapped out is not seen; kernel stacks never are.
"""

from collections.abc import Sequence

import numpy as np

from isthmus.translate.rewrite.plan import Change

_USER_CS = 0x33
_PAGE_WORDS = 512


def interrupted(memory: bytes, changes: Sequence[Change]) -> frozenset[int]:
    """The addresses of the changes within whose sites a context stands.

    :param memory: physical memory from a page's beginning on, whole pages.
    :param changes: with the linear addresses of the running guest.
    """
    words = np.frombuffer(memory, dtype="<u8")
    kernel = [change for change in changes if not change.vdso]
    programs = [change for change in changes if change.vdso]
    found = set()
    if kernel:
        high = words[(words >> np.uint64(32)) == np.uint64(0xFFFF_FFFF)]
        places = _places(kernel, (1 << 64) - 1)
        hits = high[np.isin(high, np.array(sorted(places), dtype="<u8"))]
        found |= {places[int(hit)] for hit in hits}
    if programs:
        places = _places(programs, 0xFFF)
        table = np.zeros(0x1000, dtype=bool)
        table[sorted(places)] = True
        user = (words >> np.uint64(40)) == np.uint64(0x7F)
        candidates = np.flatnonzero(user & table[words & np.uint64(0xFFF)])
        found |= {places[int(words[at]) & 0xFFF] for at in candidates.tolist() if _saved(words, at)}
    return frozenset(found)


def _places(changes: Sequence[Change], mask: int) -> dict[int, int]:
    """All addresses within sites, each with its site's."""
    return {
        change.address + at & mask: change.address
        for change in changes
        for at in range(1, len(change.before))
    }


def _saved(words: np.typing.NDArray[np.uint64], at: int) -> bool:
    """Whether the word at index ``at`` looks like a saved instruction pointer of a program."""
    left = _PAGE_WORDS - at % _PAGE_WORDS - 1
    if left < 2:
        return True
    return int(words[at + 1]) == _USER_CS or int(words[at + 2]) & 0xFFFF == _USER_CS
