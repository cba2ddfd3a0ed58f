"""The walk of a guest's page tables, on tables made here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.translate.paging import (
    ACCESSED,
    CR0_WP,
    CR4_LA57,
    DIRTY,
    LARGE,
    PRESENT,
    USER,
    WRITABLE,
    Reached,
    Refused,
    Space,
    walk,
)

ALL = PRESENT | WRITABLE | USER | ACCESSED


def run(memory, space, address, *, write=False):
    steps = walk(space, address, write=write)
    try:
        place = next(steps)
        while True:
            place = steps.send(memory.get(place, 0))
    except StopIteration as end:
        return end.value


def tables(address, entries, *, levels=4):
    """Physical memory with one path to ``address``; ``entries`` are flags from the top down."""
    memory = {}
    for depth, flags in enumerate(entries):
        shift = 12 + 9 * (levels - 1 - depth)
        memory[0x1000 * (depth + 1) + (address >> shift & 0x1FF) * 8] = (
            0x1000 * (depth + 2) if depth < len(entries) - 1 else 0x40000000
        ) | flags
    return memory


def space(*, user=True, cr0=CR0_WP, cr4=0):
    return Space(cr0=cr0, cr3=0x1000, cr4=cr4, user=user)


@given(address=st.integers(0, (1 << 47) - 1), high=st.booleans(), size=st.sampled_from([2, 3, 4]))
def test_reaches_every_page_size(address, high, size):
    if high:
        address |= 0xFFFF_8000_0000_0000
    entries = [ALL] * size
    if size < 4:
        entries[-1] |= LARGE
    found = run(tables(address, entries), space(), address)
    assert found.physical == 0x40000000 + address % (1 << (12 + 9 * (4 - size)))


def test_five_levels():
    address = 0x00AB_CDEF_1234_5678
    found = run(tables(address, [ALL] * 5, levels=5), space(cr4=CR4_LA57), address)
    assert found.physical == 0x40000678
    assert run({}, space(), address) == Refused(error_code=4), "not canonical with four"


@pytest.mark.parametrize(
    ("entries", "user", "cr0", "write", "error"),
    [
        ([ALL, ALL, ALL, 0], True, CR0_WP, False, 4),
        ([ALL, ALL, 0], True, CR0_WP, True, 6),
        ([ALL, ALL, ALL, ALL & ~USER], True, CR0_WP, False, 5),
        ([ALL & ~USER, ALL, ALL, ALL], True, CR0_WP, False, 5),
        ([ALL, ALL, ALL, ALL & ~WRITABLE], True, CR0_WP, True, 7),
        ([ALL, ALL & ~WRITABLE, ALL, ALL], False, CR0_WP, True, 3),
        ([ALL, ALL, ALL, 0], False, CR0_WP, False, 0),
        ([ALL | LARGE], True, CR0_WP, False, 0xD),
    ],
)
def test_refuses_with_the_right_code(entries, user, cr0, write, error):
    found = run(tables(0x7000, entries), space(user=user, cr0=cr0), 0x7000, write=write)
    assert found == Refused(error_code=error)


@pytest.mark.parametrize(
    ("user", "cr0", "write"), [(True, CR0_WP, False), (False, 0, True), (False, CR0_WP, False)]
)
def test_read_only_pages_can_be(user, cr0, write):
    memory = tables(0x7000, [ALL, ALL, ALL, ALL & ~WRITABLE])
    assert isinstance(run(memory, space(user=user, cr0=cr0), 0x7000, write=write), Reached)


def test_marks_what_a_cpu_marks():
    bare = PRESENT | WRITABLE | USER
    memory = tables(0x7000, [ALL, bare, ALL, bare])
    fresh = dict(run(memory, space(), 0x7000, write=True).fresh)
    assert [value & (ACCESSED | DIRTY) for value in fresh.values()] == [ACCESSED, ACCESSED | DIRTY]
    memory |= fresh
    assert run(memory, space(), 0x7000, write=True).fresh == ()
    assert run(memory, space(), 0x7000).fresh == ()
