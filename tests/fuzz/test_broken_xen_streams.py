"""Broken Xen streams: one clear line or a stream that is valid again, never anything else.

A few thousand are tried in every run, 100,000 under ``script/test --slow``.  What comes out of a
broken stream that passed is filtered once more, and has to pass unchanged.
"""

import random
import struct
from functools import cache

import pytest

from isthmus.qualification.lab import xen_stream as made
from isthmus.translate.xen import transport
from isthmus.translate.xen.fault import StreamError
from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.report import Report
from isthmus.translate.xen.rules import chosen

AMD = chosen(rules(), "AuthenticAMD")
TELLING = [0, 1, 4, 7, 8, 9, 15, 16, 0x7F, 0xFF, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@cache
def good() -> tuple[bytes, ...]:
    """Whole streams of every form; short ones, so that a change hits what is looked at."""
    no_pages = made.page_data([0xF << 60], b"")
    return (
        made.pv_stream(),
        made.hvm_stream(),
        made.checkpointed_stream(),
        made.stream(made.pv_image(no_pages, vcpus=1)),
        made.hvm_image(no_pages),
    )


def places(data: bytes) -> list[int]:
    """Where a number is likely to be looked at: all but the insides of pages and blobs of zeros."""
    return [at for at in range(0, len(data) - 8, 4) if any(data[at - 8 : at + 16])]


@cache
def telling_places(which: int) -> list[int]:
    """:func:`places` of one good stream."""
    return places(good()[which])


def broken(dice: random.Random) -> bytes:
    """One good stream with one to four changes."""
    which = dice.randrange(len(good()))
    data = bytearray(good()[which])
    spots = telling_places(which)
    for _ in range(dice.randint(1, 4)):
        at = min(dice.choice(spots), len(data) - 1) if dice.random() < 0.8 else 0
        match dice.randrange(7):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at : at + 4] = struct.pack("<I", dice.choice(TELLING))
            case 2:
                data[at : at + 4] = struct.pack("<I", dice.getrandbits(32))
            case 3:
                del data[at : at + dice.choice([1, 4, 8, 64])]
            case 4:
                data[at:at] = dice.randbytes(dice.choice([1, 8, 16]))
            case 5:
                other = dice.choice(spots)
                data[at:at] = data[other : other + dice.choice([8, 32, 256])]
            case _:
                del data[dice.randrange(len(data) + 1) :]
        if not data:
            break
    return bytes(data)


def try_one(data: bytes) -> bool:
    """Whether ``data`` passed; every other end than a clear refusal fails the test."""
    channel, report = made.InMemory(data), Report(None)
    try:
        transport.filtered(channel, AMD, report, to="AuthenticAMD")
    except StreamError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 400
        return False
    out = bytes(channel.out)
    assert len(out) == len(data)
    again = made.InMemory(out)
    transport.filtered(again, AMD, Report(None), to="AuthenticAMD")
    assert again.out == out
    return True


def fuzz(count: int, seed: int) -> None:
    dice = random.Random(seed)
    passed = 0
    for number in range(count):
        data = broken(dice)
        try:
            passed += try_one(data)
        except Exception as error:
            error.add_note(f"seed {seed}, stream {number}: {len(data)} bytes")
            raise
    assert 0 < passed < count, "the changes should break some streams, and leave some whole"


def test_the_good_ones_pass() -> None:
    assert all(try_one(data) for data in good())


def test_some_thousand_broken_ones() -> None:
    fuzz(3000, seed=random.randrange(2**32))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_broken_ones() -> None:
    fuzz(100_000, seed=8)


@pytest.mark.timeout(300)
def test_a_cut_after_every_byte_is_refused() -> None:
    data = made.stream(made.pv_image(made.page_data([0xF << 60], b""), vcpus=1))
    for cut in range(0, len(data), 3):
        assert not try_one(data[:cut])
