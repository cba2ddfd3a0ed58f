"""Instructions that no other implementation at hand has: the manuals' pseudo code, written twice.

Each is executed here in Python, after the text of the manual that is named, and compared with the
core over random states: registers, flags, instruction pointer, memory read, exception.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from isthmus.translate._core import ffi

from isthmus.translate.machine import Kind, Machine

MASK = (1 << 64) - 1
CF, ARITHMETIC, ZF = 1, 0x8D5, 0x40
GP = 13
CASES = 300


@dataclass
class State:
    """What a manual's pseudo code speaks of, before and after."""

    gpr: list[int]
    flags: int
    rip: int
    cpl: int = 3
    tsd: bool = False
    tsc: int = 0
    xmm: list[bytes] = field(default_factory=lambda: [bytes(16)] * 16)
    fs: int = 0
    read: list[tuple[int, int]] = field(default_factory=list)
    raised: str = ""


class Memory:
    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def load(self, address: int, size: int) -> bytes:
        self.read.append((address, size))
        return bytes(size)

    def store(self, address: int, data: bytes) -> None:
        raise AssertionError((address, data))


def core(code: bytes, before: State) -> State:
    """What the core makes of it."""
    machine, memory = Machine(), Memory()
    state = machine.state
    state.mode, state.cr4, state.has_ymm = 64, 0x40600 | 4 * before.tsd, 1
    state.gpr, state.rflags, state.rip = before.gpr, before.flags, before.rip
    state.cpl, state.tsc, state.segment_base[4] = before.cpl, before.tsc, before.fs
    for number, value in enumerate(before.xmm):
        ffi.memmove(state.xmm[number], value, 16)
    kind = machine.execute(code, memory)
    raised = ""
    if kind is Kind.FAULT:
        raised = f"#{machine.outcome.vector}({machine.outcome.error_code})"
    elif kind is Kind.NOT_OURS:
        raised = "#UD"
    xmm = [bytes(ffi.buffer(state.xmm[number], 16)) for number in range(16)]
    return State(
        list(state.gpr), state.rflags, state.rip, before.cpl, before.tsd, before.tsc, xmm,
        before.fs, memory.read, raised,
    )  # fmt: skip


def low(value: int, bits: int) -> int:
    return value & (1 << bits) - 1


# Each changes the state as the manual says; the instruction pointer is advanced by who calls it.


def rdpru(s: State) -> None:
    """AMD APM vol. 3, RDPRU: register 0 is MPERF, 1 is APERF; any other reads 0; CR4.TSD: #UD."""
    if s.tsd and s.cpl:
        s.raised = "#UD"
        return
    value = s.tsc if low(s.gpr[1], 32) in {0, 1} else 0  # both at base clock: the TSC's
    s.gpr[0], s.gpr[2] = low(value, 32), value >> 32


def xbegin(distance: int) -> Callable[[State], None]:
    """Intel SDM vol. 2D, XBEGIN: an abort goes to RIP + SignExtend(rel), with a status in EAX."""

    def run(s: State) -> None:
        s.rip = (s.rip + distance) & MASK
        s.gpr[0] = 0  # no bit: not by XABORT, and no use in trying again (table 16-1)

    return run


def nothing(_s: State) -> None:
    """SDM, XABORT outside a transaction; APM, LLWPCB and LWPVAL where no event is on."""


def xend(s: State) -> None:
    """SDM, XEND: IF RTM_ACTIVE = 0 THEN SIGNAL #GP."""
    s.raised = f"#{GP}(0)"


def xtest(s: State) -> None:
    """SDM, XTEST: IF not active THEN ZF := 1; CF, OF, SF, PF, AF := 0."""
    s.flags = s.flags & ~ARITHMETIC | ZF


def timed_wait(s: State) -> None:
    """SDM, TPAUSE and UMWAIT: #GP if src[31:1] is not 0; CF tells of the limit, the rest is 0."""
    if low(s.gpr[1], 32) >> 1:
        s.raised = f"#{GP}(0)"
    else:
        s.flags &= ~ARITHMETIC


def umonitor(bits: int, base: bool) -> Callable[[State], None]:
    """SDM, UMONITOR: the linear address of a byte, by address size and segment, as for a load."""

    def run(s: State) -> None:
        s.read.append((low(s.gpr[1], bits) + (s.fs if base else 0), 1))

    return run


def monitor(s: State) -> None:
    """SDM, MONITOR: at CPL 0 only; #GP if RCX is not 0; a byte load from RAX."""
    if s.cpl:
        s.raised = "#UD"
    elif s.gpr[1]:
        s.raised = f"#{GP}(0)"
    else:
        s.read.append((s.gpr[0], 1))


def mwait(s: State) -> None:
    """SDM, MWAIT: at CPL 0 only; #GP if RCX[63:1] is not 0; it may end for any reason."""
    if s.cpl:
        s.raised = "#UD"
    elif s.gpr[1] >> 1:
        s.raised = f"#{GP}(0)"


def slwpcb(bits: int) -> Callable[[State], None]:
    """AMD 43724 and APM vol. 3, SLWPCB: 0 where no control block is active."""

    def run(s: State) -> None:
        s.gpr[1] = 0 if bits else s.gpr[1]

    return run


def lwpins(s: State) -> None:
    """APM vol. 3, LWPINS: CF := 0 where the record is not stored for want of an enabled event."""
    s.flags &= ~CF


def ptwrite(size: int) -> Callable[[State], None]:
    """SDM, PTWRITE: the operand is read, and goes nowhere while no trace is on."""

    def run(s: State) -> None:
        if size:
            s.read.append((s.gpr[1], size))

    return run


def undefined(s: State) -> None:
    s.raised = "#UD"


FORMULAS: list[tuple[str, str, Callable[[State], None]]] = [
    ("RDPRU", "0f01fd", rdpru),
    ("XBEGIN rel32", "c7f8f0ffff7f", xbegin(0x7FFFFFF0)),
    ("XBEGIN rel32 back", "c7f8f0ffffff", xbegin(-16)),
    ("XBEGIN rel16", "66c7f8f0ff", xbegin(-16)),
    ("XABORT", "c6f842", nothing),
    ("XEND", "0f01d5", xend),
    ("XTEST", "0f01d6", xtest),
    ("TPAUSE", "660faef1", timed_wait),
    ("UMWAIT", "f20faef1", timed_wait),
    ("UMONITOR", "f30faef1", umonitor(64, base=False)),
    ("UMONITOR a32", "67f30faef1", umonitor(32, base=False)),
    ("UMONITOR FS", "64f30faef1", umonitor(64, base=True)),
    ("MONITOR", "0f01c8", monitor),
    ("MWAIT", "0f01c9", mwait),
    ("LLWPCB", "8fe97812c1", nothing),
    ("SLWPCB r32", "8fe97812c9", slwpcb(32)),
    ("SLWPCB r64", "8fe9f812c9", slwpcb(64)),
    ("LWPINS", "8fea7812c178563412", lwpins),
    ("LWPVAL", "8fea7812c978563412", nothing),
    ("PTWRITE r32", "f30faee1", ptwrite(0)),
    ("PTWRITE m32", "f30fae21", ptwrite(4)),
    ("PTWRITE m64", "f3480fae21", ptwrite(8)),
    ("PTWRITE 66", "66f30faee1", undefined),
]


@pytest.mark.parametrize(("name", "text", "formula"), FORMULAS, ids=[row[0] for row in FORMULAS])
def test_the_core_does_what_the_manual_says(
    name: str, text: str, formula: Callable[[State], None]
) -> None:
    code, rng = bytes.fromhex(text), random.Random(name)
    raised = 0
    for _ in range(CASES):
        gpr = [rng.getrandbits(64) for _ in range(16)]
        gpr[1] = rng.choice([0, 0, 1, 2, 3, rng.getrandbits(64), rng.getrandbits(30)])
        gpr[0] &= (1 << 46) - 1  # an address that there is
        if "UMONITOR" in name or "PTWRITE" in name:
            gpr[1] = rng.getrandbits(46)
        before = State(
            gpr, 2 | rng.getrandbits(12) & ARITHMETIC, rng.getrandbits(46),
            cpl=rng.choice([0, 3]) if name in {"MONITOR", "MWAIT", "RDPRU"} else 3,
            tsd=name == "RDPRU" and rng.random() < 0.3, tsc=rng.getrandbits(64),
            fs=rng.getrandbits(40),
        )  # fmt: skip
        expected = State(list(gpr), before.flags, before.rip + len(code), before.cpl, before.tsd,
                         before.tsc, before.xmm, before.fs)  # fmt: skip
        formula(expected)
        if expected.raised:
            raised += 1
            expected.gpr, expected.flags, expected.rip = gpr, before.flags, before.rip
        assert core(code, before) == expected, (text, before)
    assert raised < CASES or formula in {xend, undefined}


@pytest.mark.parametrize("size", [8, 16, 32, 64])
@pytest.mark.parametrize("wide", [False, True])
def test_vpsha_by_the_manuals_formula(size: int, wide: bool) -> None:
    """AMD APM vol. 6, VPSHAB to VPSHAQ: a count for each element, signed, in its low byte.

    Left by it modulo the width if positive, else right with the sign; XOP.W exchanges the
    sources.
    """
    rng, opcode = random.Random(size), {8: 0x98, 16: 0x99, 32: 0x9A, 64: 0x9B}[size]
    # VPSHA XMM1, XMM3, XMM2: ModRM.rm is 3 and vvvv 2, the other way round with W.
    code = bytes([0x8F, 0xE9, 0xE8 if wide else 0x68, opcode, 0xCA if wide else 0xCB])
    code = code[:2] + bytes([(code[2] & 0x87) | (~(3 if wide else 2) & 15) << 3]) + code[3:]
    for _ in range(CASES):
        edges = [0, 1, 0x7F, 0x80, 0xFF, rng.getrandbits(8)]
        values, counts = (bytes(rng.choice(edges) for _ in range(16)) for _ in range(2))
        xmm = [rng.randbytes(16) for _ in range(16)]
        xmm[3], xmm[2] = values, counts
        expected = b""
        for at in range(0, 16, size // 8):
            element = int.from_bytes(values[at : at + size // 8], "little", signed=True)
            count = int.from_bytes(counts[at : at + 1], "little", signed=True)
            shifted = element << count % size if count >= 0 else element >> -count % size
            expected += low(shifted, size).to_bytes(size // 8, "little")
        before = State([0] * 16, 2, 0x1000, xmm=xmm)
        after = core(code, before)
        assert (after.raised, after.rip) == ("", 0x1005)
        assert after.xmm == [xmm[0], expected, *xmm[2:]]
