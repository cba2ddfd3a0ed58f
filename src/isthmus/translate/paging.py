"""Walk a guest's page tables as its own CPU would, to know what an access does before doing it.

The debug stub reads and writes any mapped page: it knows neither "read-only" nor "not for users",
and sets no accessed or dirty bit.  A store through it into a page that is shared until written
(copy on write after ``fork``) would change the other process too.  So memory operands go through
this walk; what it refuses becomes the page fault that the guest's CPU would have raised, which
the guest's own handler then cures, and the instruction comes again.

Source: Intel SDM vol. 3A, 4.5 (4-level and 5-level paging), 4.6 (access rights), 4.7 (error code),
4.8 (accessed and dirty); AMD APM vol. 2, chapter 5.  Protection keys and SMAP are not regarded: a
guest on a baseline that lacks an instruction this old has had neither in any pair seen so far.
"""

from collections.abc import Generator

from isthmus.values import Value

PAGE = 0x1000
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
CR0_WP = 1 << 16
CR4_LA57 = 1 << 12
ERROR_PRESENT, ERROR_WRITE, ERROR_USER, ERROR_RESERVED = 1, 2, 4, 8
_FRAME = 0x000F_FFFF_FFFF_F000


class Space(Value, frozen=True):
    """An address space and who asks: control registers, and whether the access is a user's."""

    cr0: int
    cr3: int
    cr4: int
    user: bool


class Reached(Value, frozen=True):
    """The access is allowed.

    ``physical`` address; ``path``: the entries walked, as (physical address, value); ``fresh``:
    entries to be written so that they carry the bits that this access sets.
    """

    physical: int
    path: tuple[tuple[int, int], ...]
    fresh: tuple[tuple[int, int], ...]


class Refused(Value, frozen=True):
    """The access raises a page fault with this error code."""

    error_code: int


def walk(space: Space, address: int, *, write: bool) -> Generator[int, int, Reached | Refused]:
    """Walk to ``address``; yields physical addresses of entries and is sent their values."""
    levels = 5 if space.cr4 & CR4_LA57 else 4
    error = (ERROR_WRITE if write else 0) | (ERROR_USER if space.user else 0)
    bits = 12 + 9 * levels
    if not -(1 << (bits - 1)) <= _signed(address) < 1 << (bits - 1):
        return Refused(error_code=error)
    table = space.cr3 & _FRAME
    rights = WRITABLE | USER
    path: list[tuple[int, int]] = []
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        place = table + (address >> shift & 0x1FF) * 8
        entry = yield place
        if not entry & PRESENT:
            return Refused(error_code=error)
        path.append((place, entry))
        rights &= entry
        table = entry & _FRAME
        if level == 0 or (entry & LARGE and level <= 2):
            break
        if entry & LARGE:
            return Refused(error_code=error | ERROR_PRESENT | ERROR_RESERVED)
    if space.user and not rights & USER:
        return Refused(error_code=error | ERROR_PRESENT)
    if write and not rights & WRITABLE and (space.user or space.cr0 & CR0_WP):
        return Refused(error_code=error | ERROR_PRESENT)
    inside = (1 << shift) - 1
    return Reached(
        physical=(path[-1][1] & _FRAME & ~inside) | (address & inside),
        path=tuple(path),
        fresh=tuple(_marked(path, write=write)),
    )


def _marked(path: list[tuple[int, int]], *, write: bool) -> Generator[tuple[int, int], None, None]:
    """The entries that lack an accessed bit, or the last one's dirty bit, with it."""
    for index, (place, entry) in enumerate(path):
        last = index == len(path) - 1
        wanted = entry | ACCESSED | (DIRTY if write and last else 0)
        if wanted != entry:
            yield place, wanted


def _signed(address: int) -> int:
    return address - (1 << 64) if address >> 63 else address
