"""The planner of rewritings: what is written means the same, from wherever somebody goes on."""

import contextlib

import iced_x86 as iced
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.translate.rewrite import lz4
from isthmus.translate.rewrite.contexts import interrupted
from isthmus.translate.rewrite.image import Alternative
from isthmus.translate.rewrite.plan import (
    Change,
    Host,
    Site,
    boundaries,
    equal,
    inside,
    padded,
    plan,
    resumable,
)

RDTSC = bytes.fromhex("0f31909090")
LFENCE_RDTSC, RDTSCP, RDTSCP_NOP = (
    bytes.fromhex(text) for text in ("0faee80f31", "0f01f9", "0f01f96690")
)
BASE = 0xFFFF_FFFF_8100_0000


def entry(feature: int, code: bytes, length: int = 5, address: int = BASE) -> Alternative:
    return Alternative(
        address=address, length=length, feature=feature, negated=False, replacement=code, home=0
    )


def clock(address: int = BASE) -> Site:
    """rdtsc_ordered() as Linux has it."""
    entries = (entry(114, LFENCE_RDTSC, address=address), entry(59, RDTSCP, address=address))
    return Site(address=address, original=RDTSC, entries=entries)


PIECES = [RDTSC[:2], RDTSCP, LFENCE_RDTSC[:3], *(padded(b"", n) for n in range(1, 9))]
PIECES += [bytes.fromhex(text) for text in ("0f01c1", "0f01d9", "f3480fb8c7", "e800000000")]
FORMS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map(b"".join)


def effects(code: bytes) -> list[bytes]:
    """The instructions that do something, as bytes."""
    return [
        code[one.ip : one.ip + one.len]
        for one in iced.Decoder(64, code, ip=0)
        if one.mnemonic != iced.Mnemonic.NOP
    ]


@given(FORMS, FORMS)
def test_whoever_goes_on_in_the_new_form_does_what_was_left_of_the_old(
    old: bytes, new: bytes
) -> None:
    """Checked by listing effects, which the planner does not do."""
    length = max(len(old), len(new))
    old, new = padded(old, length), padded(new, length)
    if not resumable(old, new):
        return
    for at in boundaries(old):
        left, instead = effects(old[at:]), effects(new[at:])
        read_again = not left and instead == [RDTSC[:2]] and effects(old[:at])[-1:] == [RDTSCP]
        assert left == instead or read_again


@given(FORMS)
def test_a_form_may_always_be_replaced_by_itself(form: bytes) -> None:
    assert resumable(form, form)


def test_the_clock_goes_out_at_any_time_and_home_only_if_nobody_stands_inside() -> None:
    assert resumable(RDTSCP_NOP, LFENCE_RDTSC)
    assert not resumable(LFENCE_RDTSC, RDTSCP_NOP)


@given(st.integers(0, 12))
def test_padding_is_as_long_as_asked_and_does_nothing(length: int) -> None:
    assert len(padded(RDTSCP, 3 + length)) == 3 + length
    assert equal(padded(RDTSCP, 3 + length), RDTSCP)
    assert not equal(padded(RDTSCP, 3 + length) + b"\xcc", RDTSCP)


@given(st.sampled_from(["", "rdtscp"]), st.binary(min_size=5, max_size=5))
def test_only_forms_of_the_kernel_are_replaced_and_only_for_what_was_lost(
    there: str, live: bytes
) -> None:
    home = Host(frozenset({"sse2", "rdtscp"}), "")
    host = Host(frozenset({"sse2", there}), "GenuineIntel")
    assert plan([clock()], {BASE: live}, home, host) == []
    changes = plan([clock()], {BASE: RDTSCP_NOP}, home, host)
    assert [change.after for change in changes] == ([] if there else [LFENCE_RDTSC])


def test_nothing_is_written_where_nobody_knows_the_kernels_choice() -> None:
    unknown = Site(
        address=BASE,
        original=RDTSC,
        entries=(entry(3 * 32 + 5, LFENCE_RDTSC), entry(59, RDTSCP)),
    )
    home = Host(frozenset({"rdtscp"}), "")
    assert plan([unknown], {BASE: RDTSCP_NOP}, home, Host(frozenset(), "GenuineIntel")) == []


def test_hypercalls_follow_the_maker_of_the_host_both_ways() -> None:
    vmcall, vmmcall = bytes.fromhex("0f01c1"), bytes.fromhex("0f01d9")
    site = Site(address=BASE, original=vmcall, entries=(entry(271, vmmcall, 3),))
    home = Host(frozenset(), "")
    intel, amd = Host(frozenset(), "GenuineIntel"), Host(frozenset(), "AuthenticAMD")
    assert [one.after for one in plan([site], {BASE: vmmcall}, home, intel)] == [vmcall]
    assert [one.after for one in plan([site], {BASE: vmcall}, home, amd)] == [vmmcall]
    assert plan([site], {BASE: vmcall}, home, intel) == []


@given(st.integers(-3, 8), st.integers(0, 511), st.booleans())
def test_a_saved_context_is_found_wherever_it_lies(offset: int, index: int, vdso: bool) -> None:
    program = 0x7FFC_1234_5000
    change = Change(
        address=BASE + 0x123, before=LFENCE_RDTSC, after=RDTSCP_NOP, why="rdtscp", vdso=vdso
    )
    words = np.zeros(512, dtype="<u8")
    words[index] = (program if vdso else BASE) + 0x123 + offset
    if index + 1 < 512:
        words[index + 1] = 0x33 if vdso else 0x10
    found = interrupted(words.tobytes(), [change])
    assert found == (frozenset({change.address}) if 0 < offset < 5 else frozenset())
    assert inside(change, int(words[index]), 0) == (0 < offset < 5)


def test_a_number_that_only_looks_like_a_place_in_the_vdso_is_no_context() -> None:
    change = Change(
        address=BASE + 0x123, before=LFENCE_RDTSC, after=RDTSCP_NOP, why="rdtscp", vdso=True
    )
    words = np.zeros(512, dtype="<u8")
    words[7] = 0x7FFC_1234_5126
    assert interrupted(words.tobytes(), [change]) == frozenset()


def packed(data: bytes) -> bytes:
    """An LZ4 block that says everything by literals, and bytes that repeat by a match."""
    out = b""
    run = len(data) - len(data.rstrip(data[-1:])) if data else 0
    head, repeated = (data[:-run], run) if run > 20 else (data, 0)
    literals = head + (data[-1:] if repeated else b"")
    match = repeated - 1 - 5 if repeated else 0

    def length(value: int) -> bytes:
        return b"" if value < 15 else bytes([255] * ((value - 15) // 255) + [(value - 15) % 255])

    if match:
        out += bytes([min(len(literals), 15) << 4 | min(match - 4, 15)]) + length(len(literals))
        out += literals + b"\1\0" + length(match - 4)
        literals = data[-5:]
    return out + bytes([min(len(literals), 15) << 4]) + length(len(literals)) + literals


@given(st.binary(min_size=1, max_size=600), st.integers(0, 2000))
def test_lz4_gives_back_what_was_packed(head: bytes, run: int) -> None:
    data = head + b"\x5a" * run
    block = packed(data)
    frame = lz4.MAGIC + len(block).to_bytes(4, "little") + block + len(data).to_bytes(4, "little")
    assert lz4.unpack(frame, limit=1 << 20) == data


@given(st.binary(max_size=200))
def test_a_broken_lz4_frame_is_refused_or_short(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert len(lz4.unpack(lz4.MAGIC + data, limit=1 << 20)) <= 1 << 20
