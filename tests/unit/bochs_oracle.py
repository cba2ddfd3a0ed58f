"""The emulation core beside Bochs' CPU, for AMD's instructions; run by test_core_bochs.py.

``bochs_oracle.py SEED CASES`` prints one JSON line: cases and mismatches by mnemonic, and what this
Bochs does not know.  Bochs (as packaged in bochscpu-python 0.4.0) departs from the manuals in
places; each is met by what it is given, and named here:

* it takes VEX.W the other way round where W exchanges operands (FMA4, VPCMOV, VPPERM, XOP's
  shifts; AMD APM vol. 6, "XOP.W"; iced-x86, GNU binutils and LLVM agree with the manual);
* the two sources of VPPERM and VPERMIL2 are exchanged (LLVM and GCC number them as we do): the bit
  of each control that chooses between them is inverted for it;
* VPSHLW shifts left by a negative count too: it is given none;
* EXTRQ and INSERTQ keep the upper quadword, undefined by the manual and cleared by Zen 5 and us;
* TBM and VPSHA raise #UD; BEXTR does not set ZF; DE is raised later than on Intel's CPUs.
"""

import contextlib
import ctypes
import json
import random
import struct
import sys
from collections import Counter
from typing import Any

import bochscpu
import bochscpu.cpu
import bochscpu.memory
import iced_x86
from isthmus.translate._core import ffi

from isthmus.translate.machine import Kind, Machine

PAGES, SLOT, START, PML4, DATA = 64, 32, 0x400000, 0x1000, 0x600000
GENERAL = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
NAMES = {value: name for name, value in vars(iced_x86.Mnemonic).items() if name.isupper()}
STATUS = 0x8C1  # OF, SF, ZF, CF: AF and PF are undefined after most
DENORMAL = 2

rng = random.Random(int(sys.argv[1]))


class Bochs:
    """One Bochs CPU in long mode; every encoding has a place of its own, since code is cached."""

    def __init__(self) -> None:
        self.table = table = bochscpu.memory.PageMapLevel4Table()
        self.pages = []
        for number in range(PAGES + 1):
            place = DATA if number == PAGES else START + 0x1000 * number
            host = bochscpu.memory.allocate_host_page()
            self.pages.append(host)
            table.insert(place, place, 7)
            bochscpu.memory.page_insert(place, host)
        for host, physical in table.commit(PML4):
            bochscpu.memory.page_insert(physical, host)
        self.session = bochscpu.Session()
        self.session.missing_page_handler = lambda _address: self.session.stop()
        self.hook = bochscpu.Hook()
        self.hook.before_execution = self._before
        self.hook.exception = self._exception
        self.places: dict[bytes, int] = {}
        self.left = 0
        self.failed = False

    def _before(self, session: Any, _cpu: int, _instruction: int) -> None:
        self.left -= 1
        if self.left < 0:
            session.stop()

    def _exception(self, session: Any, *_details: int) -> None:
        self.failed = True
        session.stop()

    def place(self, code: bytes) -> int:
        if code not in self.places:
            number = len(self.places)
            page, slot = divmod(number, 0x1000 // SLOT)
            self.places[code] = START + SLOT * number
            filled = code + b"\x90" * (SLOT - len(code))
            ctypes.memmove(self.pages[page] + SLOT * slot, filled, SLOT)
        return self.places[code]

    @property
    def full(self) -> bool:
        return len(self.places) >= PAGES * 0x1000 // SLOT - 1

    def run(
        self, code: bytes, count: int, general: dict[str, int], vectors: list[list[int]]
    ) -> Any:
        """Run ``count`` instructions; the state, None after an exception."""
        state = bochscpu.State()
        bochscpu.cpu.set_long_mode(state)
        state.cr3 = PML4
        state.cr4 |= 1 << 9 | 1 << 10 | 1 << 18  # OSFXSR, OSXMMEXCPT, OSXSAVE
        state.xcr0, state.mxcsr, state.mxcsr_mask, state.rflags = 7, 0x1F80, 0xFFFF, 2
        state.cs = segment(0x33, 0xA0FB)
        for name in ("ds", "es", "ss", "fs", "gs"):
            setattr(state, name, segment(0x2B, 0xC0F3))
        registers = state.zmm
        for number, quads in enumerate(vectors):
            registers[number].q = [*quads, 0, 0, 0, 0]
        state.zmm = registers
        for name, value in general.items():
            setattr(state, name, value)
        state.rip = self.place(code)
        self.session.cpu.state = state
        self.left, self.failed = count, False
        self.session.run([self.hook])
        return None if self.failed else self.session.cpu.state


def segment(selector: int, attributes: int) -> Any:
    made = bochscpu.Segment()
    made.present, made.selector, made.base = True, selector, 0
    made.limit, made.attr = 0xFFFFFFFF, attributes
    return made


class NoMemory:
    def load(self, _address: int, size: int) -> bytes:
        return bytes(size)

    def store(self, _address: int, _data: bytes) -> None:
        return


def quad() -> int:
    """A value where shifts, signs, rounding and cancellation have their edges."""
    roll = rng.random()
    if roll < 0.3:
        return rng.getrandbits(64)
    if roll < 0.5:
        edges = [0, 1, 0x7F, 0x80, 0xFF, 0xFE, 8, 0x10, 0xF8]
        return int.from_bytes(bytes(rng.choice(edges) for _ in range(8)), "little")
    if roll < 0.75:
        special = [0.0, -0.0, 1.0, float("inf"), -1.5, 1e-45, 3e38]
        ordinary = rng.uniform(-4, 4) * 2.0 ** rng.randrange(-30, 30)
        return int.from_bytes(struct.pack("<2f", ordinary, rng.choice(special)), "little")
    special = [0.0, -0.0, 5e-324, 1.7e308, float("inf"), float("nan")]
    ordinary = rng.uniform(-3, 3) * 2.0 ** rng.randrange(-60, 60)
    return int.from_bytes(struct.pack("<d", rng.choice([ordinary, *special])), "little")


XOP8 = [0x85, 0x86, 0x87, 0x8E, 0x8F, 0x95, 0x96, 0x97, 0x9E, 0x9F, 0xA2, 0xA3, 0xA6, 0xB6,
        *range(0xC0, 0xC4), *range(0xCC, 0xD0), *range(0xEC, 0xF0)]  # fmt: skip
XOP9 = [*range(0x80, 0x84), *range(0x90, 0x9C), 0xC1, 0xC2, 0xC3, 0xC6, 0xC7, 0xCB, 0xD1, 0xD2,
        0xD3, 0xD6, 0xD7, 0xDB, 0xE1, 0xE2, 0xE3]  # fmt: skip
FMA4 = [0x48, 0x49, *range(0x5C, 0x60), *range(0x68, 0x70), *range(0x78, 0x80)]
USABLE = [number for number in range(16) if number != 4]


def encoding(group: str) -> bytes:
    """A random instruction on registers, with four bytes that may be its immediate."""
    reg, rm, vvvv = (rng.choice(USABLE) for _ in range(3))
    wide, long_vector = rng.random() < 0.5, rng.random() < 0.3
    tail = rng.randbytes(4)
    modrm = 0xC0 | (reg & 7) << 3 | rm & 7

    def three_bytes(first: int, table: int, prefix: int, opcode: int) -> bytes:
        high = (0x80 if reg < 8 else 0) | 0x40 | (0x20 if rm < 8 else 0) | table
        low = wide << 7 | (~vvvv & 15) << 3 | long_vector << 2 | prefix
        return bytes([first, high, low, opcode, modrm]) + tail

    if group == "fma4":
        return three_bytes(0xC4, 3, 1, rng.choice(FMA4))
    if group == "sse4a":
        prefix, rex = rng.choice([0x66, 0xF2]), 0x40 | (reg >> 3) << 2 | rm >> 3
        return bytes([prefix, rex, 0x0F, rng.choice([0x78, 0x79]), modrm]) + tail
    if rng.random() < 0.5:
        return three_bytes(0x8F, 8, 0, rng.choice(XOP8))
    if rng.random() < 0.5:
        vvvv = 0
    return three_bytes(0x8F, 9, 0, rng.choice(XOP9))


def for_bochs(code: bytes, mnemonic: str) -> bytes:
    """The encoding that means to this Bochs what ``code`` means to the manuals."""
    if (
        code[0] == 0xC4
        or mnemonic in {"VPCMOV", "VPPERM"}
        or mnemonic.startswith(("VPSH", "VPROT"))
    ):
        if code[0] == 0x8F and code[1] & 31 == 8 and mnemonic.startswith("VPROT"):
            return code  # by an immediate
        return code[:2] + bytes([code[2] ^ 0x80]) + code[3:]
    return code


def machine_with(general: dict[str, int], vectors: list[list[int]]) -> Machine:
    machine = Machine()
    state = machine.state
    state.mode, state.cr4, state.has_ymm = 64, 0x40600, 1
    state.mxcsr, state.rflags = 0x1F80, 2
    for number, quads in enumerate(vectors):
        ffi.memmove(state.xmm[number], struct.pack("<2Q", *quads[:2]), 16)
        ffi.memmove(state.ymm_high[number], struct.pack("<2Q", *quads[2:]), 16)
    state.gpr = [general[name] for name in GENERAL]
    return machine


def vectors_of(machine: Machine) -> list[tuple[int, ...]]:
    state = machine.state
    return [
        struct.unpack(
            "<4Q", bytes(ffi.buffer(state.xmm[n], 16)) + bytes(ffi.buffer(state.ymm_high[n], 16))
        )
        for n in range(16)
    ]


def without_negative_words(value: int) -> int:
    words = struct.unpack("<4H", value.to_bytes(8, "little"))
    return int.from_bytes(struct.pack("<4H", *(word & 0x7F for word in words)), "little")


# The bit of each control that chooses the source.
CHOOSES = {
    "VPPERM": 0x1010101010101010, "VPERMIL2PS": 0x400000004, "VPERMIL2PD": 4,
}  # fmt: skip


def control_register(code: bytes) -> int:
    """Which register holds the control: the immediate's, or r/m if W is set."""
    if code[2] >> 7:
        return (code[4] & 7) | (0 if code[1] & 0x20 else 8)
    return code[5] >> 4


def compare(bochs: Bochs, code: bytes, mnemonic: str) -> bool | None:
    """Whether both agree on a random state; None if Bochs does not know the instruction."""
    vectors = [[quad() for _ in range(4)] for _ in range(16)]
    if mnemonic == "VPSHLW":
        vectors = [[without_negative_words(value) for value in quads] for quads in vectors]
    general = {name: quad() for name in GENERAL}
    ours = machine_with(general, vectors)
    ours.execute(code, NoMemory())
    control = control_register(code) if mnemonic in CHOOSES else -1
    given = [list(quads) for quads in vectors]
    if control >= 0:
        given[control] = [value ^ CHOOSES[mnemonic] for value in given[control]]
    theirs = bochs.run(for_bochs(code, mnemonic), 1, general, given)
    if theirs is None:
        return None
    mine = vectors_of(ours)
    if mnemonic in {"EXTRQ", "INSERTQ"}:
        target = sse4a_target(code)
        mine[target] = (mine[target][0], vectors[target][1], *mine[target][2:])
    flags = STATUS if mnemonic != "BEXTR" else 0x801
    pairs = zip(mine, (tuple(register.q[:4]) for register in theirs.zmm[:16]), strict=True)
    return (
        all(one == other for number, (one, other) in enumerate(pairs) if number != control)
        and list(ours.state.gpr) == [getattr(theirs, name) for name in GENERAL]
        and not (ours.state.rflags ^ theirs.rflags) & flags
        and not (ours.state.mxcsr ^ theirs.mxcsr) & ~DENORMAL
    )


def sse4a_target(code: bytes) -> int:
    """The register that EXTRQ or INSERTQ writes: ModRM.rm for EXTRQ with immediates."""
    if code[0] == 0x66 and code[3] == 0x78:
        return (code[1] & 1) << 3 | code[4] & 7
    return (code[1] & 4) << 1 | code[4] >> 3 & 7


def overlapping(code: bytes, mnemonic: str) -> bool:
    """Whether the control is a source or the result too: it cannot be inverted for one only."""
    if mnemonic not in CHOOSES:
        return False
    rm = (code[4] & 7) | (0 if code[1] & 0x20 else 8)
    reg = (code[4] >> 3 & 7) | (0 if code[1] & 0x80 else 8)
    return len({~code[2] >> 3 & 15, rm, code[5] >> 4, reg}) < 4


def supported() -> int:
    """Two singles that 3DNow! gives a result for: zero or normal, and far from overflow."""
    words = []
    for _ in range(2):
        word = quad() & 0xFFFFFFFF
        exponent = word >> 23 & 0xFF
        if not exponent:
            word &= 0x80000000
        elif not 64 <= exponent <= 190:
            word = word & 0x807FFFFF | rng.randrange(64, 191) << 23
        words.append(word)
    return words[0] | words[1] << 32


def compare_3dnow(bochs: Bochs, suffix: int) -> bool | None:
    """3DNow!: MOVQ from memory, the instruction on MM0 and MM1, MOVQ2DQ to XMM0."""
    operation = bytes([0x0F, 0x0F, 0xC1, suffix])
    code = b"\x0f\x6f\x06\x0f\x6f\x4e\x08" + operation + b"\xf3\x0f\xd6\xc0"
    operands = [supported(), supported()]
    ctypes.memmove(bochs.pages[PAGES], struct.pack("<2Q", *operands), 16)
    general = dict.fromkeys(GENERAL, 0) | {"rsi": DATA}
    theirs = bochs.run(code, 4, general, [[0] * 4] * 16)
    if theirs is None:
        return None
    ours = machine_with(general, [[0] * 4] * 16)
    for number, value in enumerate(operands):
        ffi.memmove(ours.state.mmx[number], value.to_bytes(8, "little"), 8)
    ours.execute(operation, NoMemory())
    return int.from_bytes(bytes(ffi.buffer(ours.state.mmx[0], 8)), "little") == theirs.zmm[0].q[0]


def main() -> None:
    bochs, cases = Bochs(), int(sys.argv[2])
    groups = sys.argv[3].split(",")
    tried: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    unknown: Counter[str] = Counter()

    def note(mnemonic: str, answer: bool | None) -> None:
        if answer is None:
            unknown[mnemonic] += 1
        else:
            tried[mnemonic] += 1
            wrong[mnemonic] += not answer

    for group in groups:
        done = 0
        while done < cases and group != "3dnow" and not bochs.full:
            full = encoding(group)
            machine = machine_with(dict.fromkeys(GENERAL, 0), [[0] * 4] * 16)
            if machine.execute(full, NoMemory()) is not Kind.DONE:
                continue
            code, mnemonic = full[: machine.outcome.length], machine.mnemonic
            if overlapping(code, mnemonic):
                continue
            assert NAMES[iced_x86.Decoder(64, full).decode().mnemonic] == mnemonic, full.hex()
            for _ in range(20):
                note(mnemonic, compare(bochs, code, mnemonic))
                done += 1
        for suffix in (0x0D, 0x1D, 0x90, 0x94, 0x9A, 0x9E, 0xA0, 0xA4, 0xAA, 0xAE, 0xB0, 0xB4, 0xB7,
                       0xBF, 0x0C, 0x1C, 0x8A, 0x8E, 0xBB):  # fmt: skip
            machine = machine_with(dict.fromkeys(GENERAL, 0), [[0] * 4] * 16)
            if (
                group == "3dnow"
                and machine.execute(bytes([15, 15, 0xC1, suffix]), NoMemory()) is Kind.DONE
            ):
                for _ in range(cases // 19):
                    note(machine.mnemonic, compare_3dnow(bochs, suffix))
    print(json.dumps({"tried": tried, "wrong": +wrong, "unknown": unknown}), flush=True)
    with contextlib.suppress(Exception):
        import os

        os._exit(0)  # the package crashes as it is taken down


if __name__ == "__main__":
    main()
