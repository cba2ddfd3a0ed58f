"""AVX's own floating point in the core: what no comparison with one CPU shows.

The comparison itself is ``test_core_vectors.py``.  The approximations are held to the manual's
bound (Intel SDM vol. 2B, RCPPS and RSQRTPS, with their tables of special values).
"""

import random
import struct
from fractions import Fraction

import pytest

from isthmus.translate.machine import Kind, Machine

INFINITE, NAN, DENORMAL = 0x7F800000, 0x7FC00000, 0x00000001
MINUS = 0x80000000
BOUND = Fraction(3, 2) / 2**12


class NoMemory:
    def load(self, _address: int, size: int) -> bytes:
        return bytes(size)

    def store(self, _address: int, _data: bytes) -> None:
        return


def machine(*, mxcsr: int = 0x1F80, **registers: bytes) -> Machine:
    made = Machine()
    state = made.state
    state.mode, state.cr4, state.has_ymm, state.cpl, state.mxcsr = 64, 0x40600, 1, 3, mxcsr
    for name, value in registers.items():
        state.xmm[int(name.removeprefix("xmm"))] = value.ljust(16, b"\0")
    return made


def approximated(opcode: int, bits: int) -> int:
    """VRCPSS (53) or VRSQRTSS (52) of one number; no flag may be raised."""
    made = machine(mxcsr=0, xmm1=bits.to_bytes(4, "little"))
    assert made.execute(bytes([0xC5, 0xEA, opcode, 0xC1]), NoMemory()) is Kind.DONE
    assert made.state.mxcsr == 0
    return int.from_bytes(bytes(made.state.xmm[0])[:4], "little")


def number(bits: int) -> Fraction:
    return Fraction(struct.unpack("<f", bits.to_bytes(4, "little"))[0])


def test_reciprocals_are_within_the_bound() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        bits = rng.randrange(1, 253) << 23 | rng.getrandbits(23)
        x = number(bits)
        assert abs(number(approximated(0x53, bits)) * x - 1) <= BOUND
        root = number(approximated(0x52, bits))
        # |r * sqrt(x) - 1| <= b, squared so that all is exact.
        assert (1 - BOUND) ** 2 <= root * root * x <= (1 + BOUND) ** 2
        assert approximated(0x53, bits | MINUS) == approximated(0x53, bits) | MINUS


@pytest.mark.parametrize(
    ("opcode", "given", "expected"),
    [
        (0x53, 0, INFINITE),
        (0x53, MINUS, MINUS | INFINITE),
        (0x53, DENORMAL, INFINITE),
        (0x53, INFINITE, 0),
        (0x53, MINUS | INFINITE, MINUS),
        (0x53, 0x7F7FFFFF, 0),  # a tiny result is flushed
        (0x53, 0xFF7FFFFF, MINUS),
        (0x53, 0x7F800001, 0x7FC00001),
        (0x53, NAN | 0x123, NAN | 0x123),
        (0x52, 0, INFINITE),
        (0x52, MINUS, MINUS | INFINITE),
        (0x52, MINUS | DENORMAL, MINUS | INFINITE),
        (0x52, DENORMAL, INFINITE),
        (0x52, INFINITE, 0),
        (0x52, MINUS | INFINITE, MINUS | NAN),
        (0x52, 0xBF800000, MINUS | NAN),
        (0x52, 0x7F800001, 0x7FC00001),
    ],
)
def test_special_values_of_approximations(opcode: int, given: int, expected: int) -> None:
    assert approximated(opcode, given) == expected


def test_an_unmasked_exception_leaves_the_destination_and_shows_its_flags() -> None:
    one, zero = struct.pack("<4f", 1, 1, 1, 1), struct.pack("<4f", 3, 3, 3, 0)
    made = machine(mxcsr=0x1F80 & ~0x200, xmm0=b"as it was", xmm1=one, xmm2=zero)
    assert made.execute(bytes.fromhex("c5f05ec2"), NoMemory()) is Kind.FAULT  # VDIVPS
    assert made.outcome.vector == 19
    # Division by zero is found before anything is divided: that 1/3 is inexact is not shown.
    assert made.state.mxcsr == 0x1D84
    assert bytes(made.state.xmm[0]).startswith(b"as it was")
    assert made.state.rip == 0
    made.state.cr4 = 0x40200  # without OSXMMEXCPT it is an invalid opcode
    assert made.execute(bytes.fromhex("c5f05ec2"), NoMemory()) is Kind.NOT_OURS


@pytest.mark.parametrize(
    "code",
    [
        "c4e37541c2ff",  # VDPPD of 256 bits
        "c5f051c2",  # VSQRTPS with VEX.vvvv
        "c5f02ec2",  # VUCOMISS with it
        "c5f05bc2",  # VCVTDQ2PS with it
        "c5f153c2",  # RCPPD: no such thing
    ],
)
def test_what_is_no_instruction_is_declined(code: str) -> None:
    assert machine().execute(bytes.fromhex(code), NoMemory()) is Kind.NOT_OURS


def test_a_wide_operand_size_counts_in_64_bit_mode_only() -> None:
    """VCVTSI2SD with VEX.W (Intel SDM vol. 2A, CVTSI2SD)."""
    code = bytes.fromhex("c4e1f32ac0")
    for mode, expected in ((64, float(0x7_0000_0001)), (32, 1.0)):
        made = machine()
        made.state.mode, made.state.gpr[0] = mode, 0x7_0000_0001
        assert made.execute(code, NoMemory()) is Kind.DONE
        assert struct.unpack_from("<d", bytes(made.state.xmm[0]))[0] == expected
