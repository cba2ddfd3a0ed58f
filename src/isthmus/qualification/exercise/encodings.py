"""Which instructions the exercise executes: every encoding that the emulation core takes.

All opcodes of the maps are offered to the core with every prefix, width and operand form; what it
takes, and an independent decoder (iced-x86) calls by the same name, is kept once for each encoding
and operand form.  The decoder says which CPUID features each needs, so the program can choose by
CPUID what its CPU has.  Nothing depends on the machine: the list is the same everywhere.
"""

import enum
import functools
import random
import re
from collections.abc import Iterator

import iced_x86

from isthmus.errors import InputError
from isthmus.scan.explain import instruction
from isthmus.translate.machine import Kind, Machine, PageFaultError
from isthmus.translate.table import instructions
from isthmus.values import Value

BASE = 6  # RSI: every memory operand lies near it
OFFSET = 0x20
_REGISTERS = (0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14)  # neither RSP nor the base
_NAMES = {value: name for name, value in vars(iced_x86.Mnemonic).items() if name.isupper()}
_ALIASES = {
    "PCMPESTRM64": "PCMPESTRM", "PCMPESTRI64": "PCMPESTRI",
    "VPCMPESTRM64": "VPCMPESTRM", "VPCMPESTRI64": "VPCMPESTRI",
}  # fmt: skip
_GROUPS = {
    0x01,
    0x0D,
    0x71,
    0x72,
    0x73,
    0x78,
    0xAE,
    0xC7,
    0xF3,
}  # opcodes whose ModRM.reg is part of the opcode

ALL_FLAGS = 0x8D5
DEFINED = {
    "BEXTR": 0x841, "ANDN": 0x8C1, "BLSI": 0x8C0, "BLSR": 0x8C1, "BLSMSK": 0x8C1, "BZHI": 0x8C1,
    "BLCFILL": 0x8C1, "BLCI": 0x8C1, "BLCIC": 0x8C1, "BLCMSK": 0x8C1, "BLCS": 0x8C1,
    "BLSFILL": 0x8C1, "BLSIC": 0x8C1, "T1MSKC": 0x8C1, "TZMSK": 0x8C1,
}  # fmt: skip
"""Arithmetic flags that are defined after an instruction (all where nothing is said): Intel SDM
vol. 2 and AMD APM vol. 3, the instruction's page.  For BLSI see :data:`TCG_DIFFERS`."""

LEFT_OUT = {
    "MONITOR": "privileged: the kernel's idle loop executes it",
    "MWAIT": "privileged: the kernel's idle loop executes it",
    "MONITORX": "waits for another CPU's store",
    "MWAITX": "waits for another CPU's store",
    "UMONITOR": "waits for another CPU's store",
    "UMWAIT": "waits as long as its host lets it",
    "TPAUSE": "waits as long as its host lets it",
    "XBEGIN": "a transaction may abort at any time, so it has no one result",
    "XABORT": "means nothing outside a transaction",
    "XEND": "faults outside a transaction",
    "XTEST": "tells of transactions, which have no one result",
    "RDPRU": "reads counters that differ from host to host",
    "SERIALIZE": "has no result",
    "PTWRITE": "gives its operand to a trace, which is off",
    "VRCPPS": "an approximation, which differs from maker to maker",
    "VRCPSS": "an approximation, which differs from maker to maker",
    "VRSQRTPS": "an approximation, which differs from maker to maker",
    "VRSQRTSS": "an approximation, which differs from maker to maker",
    "FISTTP": "needs a number on the x87's stack; QEMU's TCG has it on every CPU model",
    "MOVDIR64B": "copies 64 bytes to where a register points; no lab CPU has it",
}
"""What the exercise does not execute, with the reason."""

TCG_DIFFERS = {
    "EXTRQ with immediates": "QEMU 7.2's TCG does it on XMM0, whatever its operand: XMM0 is named",
    "MMX registers with REX.R or REX.B": "QEMU 7.2's TCG takes a register beyond MM7, where a CPU "
    "ignores the bit: registers below 8 are named",
    "FEMMS, EMMS": "QEMU's TCG leaves TOP, where a CPU sets it to 0: TOP is 0 before",
    "PFRSQRT": "QEMU's TCG rounds twice, the core once, and a CPU gives 15 bits: it is given "
    "powers of four, whose roots are exact",
    "BLSI": "QEMU 7.2's TCG inverts CF: CF is not summed",
    "ADCX, ADOX of 32 bits": "QEMU 7.2's TCG alters flags that are not theirs: left out in the lab",
    "VAESENC, VAESDEC of YMM registers": "QEMU 7.2's TCG mixes the lanes: left out in the lab",
    "VBROADCASTSS, VBROADCASTSD of registers": "QEMU 7.2's TCG executes AVX2's forms "
    "for AVX alone: they need not trap",
    "single and double precision": "QEMU 7.2's TCG has another rule where two NaNs meet, and does "
    "not raise MXCSR.DE for a denormal (both tried): DE is not summed, and numbers are ordinary",
}
"""Where the lab's emulator is not as a CPU is, and what the exercise does about it.  All else was
equal between QEMU 7.2's TCG, the core and an AMD EPYC (Zen 5)."""
NEED_NOT_TRAP = frozenset({"VBROADCASTSS", "VBROADCASTSD"})
"""Mnemonics that the lab's emulator may execute where the CPU lacks them."""

_NOT_IN_LAB = re.compile(r"AD[CO]X/32|VAES(ENC|DEC)/256")


class Shape(enum.IntEnum):
    """What the registers and memory hold before, or how the result is judged (``exercise.c``)."""

    ANY = 0
    SINGLES = 1  # ordinary single-precision numbers: no NaN, infinity or denormal
    DOUBLES = 2  # the same in double precision
    STRINGS = 3  # lengths in RAX and RDX, bytes that repeat
    FIELD = 4  # EXTRQ, INSERTQ: a field inside the quadword, as the manual wants it
    GATHER = 5  # small indices, signs in the mask
    LINE = 6  # RAX points to memory
    CLOCK = 7  # RDTSCP: between two readings of the clock; the processor's number
    RANDOM = 8  # RDRAND, RDSEED: CF set, no other flag
    NUMBER = 9  # RDPID: the processor's number
    COMPARE = 10  # CMPXCHG16B: finds what it looks for every other time
    INTEGERS = 11  # small integers, which a float holds exactly
    HALVES = 12  # ordinary half-precision numbers
    POWERS = 13  # powers of four in single precision
    EMPTIES = 14  # the x87 registers, which the instruction empties, start at 0
    TARGET = 15  # RDI points to memory
    CONTROL = 16  # memory holds an MXCSR: all exceptions masked, no reserved bit


class Encoding(Value, frozen=True):
    """One instruction in 64-bit mode: its bytes, its name, which features it needs.

    ``needs``: of each set the CPU must have one.  ``group`` is the feature under which its results
    are summed.  ``mask`` is the register of a gather's mask or a field's control, else 0.  ``lab``:
    whether the lab's emulator does it as a CPU would.
    """

    code: bytes
    mnemonic: str
    needs: tuple[frozenset[str], ...]
    group: str
    flags: int = ALL_FLAGS
    shape: Shape = Shape.ANY
    mask: int = 0
    lab: bool = True


@functools.cache
def encodings(seed: int = 1) -> tuple[Encoding, ...]:
    """All encodings, sorted by group; ``seed`` chooses registers and immediate operands."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    found: dict[tuple[str, int, bool], Encoding] = {}
    for code, mask in _candidates(rng):
        made = _made(code + rng.randbytes(4), mask)
        if made is not None:
            found.setdefault(made[0], made[1])
    return tuple(sorted(found.values(), key=lambda one: (one.group, one.mnemonic, one.code)))


def _candidates(rng: random.Random) -> Iterator[tuple[bytes, int]]:
    """Bytes that may be an instruction, and the register of a mask."""
    for lone in (b"\x9e", b"\x9f", b"\x0f\x01\xf9", b"\x0f\x01\xfc"):
        yield lone, 0
    for opcode in range(256):
        for prefix in range(4):
            for wide in range(2):
                for memory in range(2):
                    for table in (1, 2, 3):
                        yield from _legacy(rng, table, opcode, prefix, wide, memory)
                        for long_vector in range(2):
                            yield from _vex(
                                rng, 0xC4, table, opcode, prefix, wide, memory, long_vector
                            )
                    for table in (8, 9, 10):
                        for long_vector in range(2):
                            yield from _vex(
                                rng, 0x8F, table, opcode, prefix, wide, memory, long_vector
                            )
        for memory in range(2):  # 3DNow!: the opcode stands behind the operands
            yield (
                bytes([0x0F, 0x0F, *_modrm(rng.randrange(8), rng.randrange(8), memory), opcode]),
                0,
            )


def _legacy(
    rng: random.Random, table: int, opcode: int, prefix: int, wide: int, memory: int
) -> Iterator[tuple[bytes, int]]:
    if table == 1 and opcode in {0x0F, 0x38, 0x3A}:
        return  # these lead to the other maps
    mmx = not prefix and not (table == 2 and opcode >= 0xC0)
    for reg in _regs(rng, opcode, low=mmx):
        rm = rng.choice([n for n in _REGISTERS if not mmx or n < 8])
        if opcode == 0x78 and prefix == 1:
            rm = 0  # QEMU 7.2's TCG does EXTRQ-immediate on XMM0, whatever its operand
        code = [(0x66, 0xF3, 0xF2)[prefix - 1]] if prefix else []
        rex = 0x40 | wide << 3 | (reg >> 3) << 2 | (0 if memory else rm >> 3)
        code += [rex] if rex != 0x40 else []
        code += [[0x0F], [0x0F, 0x38], [0x0F, 0x3A]][table - 1] + [opcode]
        code += _modrm(reg, rm, memory)
        if opcode == 0x78:  # a field's length and index, together at most 64
            length = rng.randrange(1, 63)
            code += [length, rng.randrange(1, 65 - length)]
        yield bytes(code), rm


def _vex(
    rng: random.Random, escape: int, table: int, opcode: int, prefix: int, wide: int, memory: int,
    long_vector: int,
) -> Iterator[tuple[bytes, int]]:  # fmt: skip
    for reg in _regs(rng, opcode if table in {1, 2} or escape == 0x8F else 0, xop=escape == 0x8F):
        vvvv = rng.choice([number for number in _REGISTERS if number != reg])
        rm = rng.choice(_REGISTERS)
        high = (0x80 if reg < 8 else 0) | 0x40 | (0x20 if memory or rm < 8 else 0) | table
        third = wide << 7 | (~vvvv & 15) << 3 | long_vector << 2 | prefix
        code = [escape, high, third, opcode]
        if table == 2 and opcode & 0xFC == 0x90 and memory:
            index = rng.choice([n for n in range(8) if n not in {reg, vvvv, 4}])
            code += [0x44 | (reg & 7) << 3, index << 3 | BASE, OFFSET]
        else:
            code += _modrm(reg, rm, memory)
        yield bytes(code), vvvv
        if table != 2 or opcode & 0xFC != 0x90:  # the same with vvvv unused
            yield bytes([escape, high, third | 0x78, *code[3:]]), 0


def _regs(rng: random.Random, opcode: int, *, xop: bool = False, low: bool = False) -> list[int]:
    """The values of ModRM.reg to try: all eight where they are part of the opcode.

    :param low: the operand may be an MMX register, of which there are eight.
    """
    if opcode in _GROUPS or (xop and opcode in {0x01, 0x02, 0x12}):
        return list(range(8))
    return [rng.choice([n for n in _REGISTERS if not low or n < 8])]


def _modrm(reg: int, rm: int, memory: int) -> list[int]:
    if memory:
        return [0x40 | (reg & 7) << 3 | BASE, OFFSET]
    return [0xC0 | (reg & 7) << 3 | rm & 7]


class _Zeroes:
    """Memory at the operands' place, and nowhere else."""

    def load(self, address: int, size: int) -> bytes:
        if address >= 1 << 20:
            raise PageFaultError(address, 4)
        return bytes(size)

    def store(self, address: int, _data: bytes) -> None:
        self.load(address, 0)


@functools.cache
def _features() -> dict[str, frozenset[str]]:
    """The features of the core's table by mnemonic."""
    found: dict[str, frozenset[str]] = {}
    for row in instructions():
        found[row.mnemonic] = found.get(row.mnemonic, frozenset()) | {row.feature}
    return found


def _made(bytes_: bytes, mask: int) -> tuple[tuple[str, int, bool], Encoding] | None:
    machine = Machine()
    state = machine.state
    state.mode, state.cr4, state.has_ymm, state.cpl, state.mxcsr = 64, 0x40600, 1, 3, 0x1F80
    state.random_valid = 1
    state.gpr[BASE] = 0x1000
    if machine.execute(bytes_, _Zeroes()) not in {Kind.DONE, Kind.FAULT}:
        return None
    mnemonic, length = machine.mnemonic, machine.outcome.length
    decoded = iced_x86.Decoder(64, bytes_).decode()
    theirs = _NAMES[decoded.mnemonic]
    memory = any(
        decoded.op_kind(number) == iced_x86.OpKind.MEMORY for number in range(decoded.op_count)
    )
    if (_ALIASES.get(theirs, theirs), decoded.len) != (mnemonic, length) or mnemonic in LEFT_OUT:
        return None
    try:
        needs = instruction(bytes_).needs
    except InputError:
        return None
    # The core's table names a VEX form by its legacy form where there is one.
    ours = _features().get(mnemonic) or _features().get(mnemonic.removeprefix("V"), frozenset())
    named = sorted(ours & frozenset().union(*needs))
    if not named:
        return None
    made = Encoding(
        code=bytes_[:length],
        mnemonic=mnemonic,
        needs=needs,
        group=named[0],
        flags=DEFINED.get(mnemonic, ALL_FLAGS),
        shape=_shape(mnemonic),
        mask=mask,
        lab=not _NOT_IN_LAB.match(f"{mnemonic}/{_bits(decoded)}"),
    )
    return (mnemonic, int(decoded.code), memory), made


def _bits(decoded: iced_x86.Instruction) -> int:
    """The size of the first operand in bits, 0 if there is none or it lies in memory."""
    if not decoded.op_count or decoded.op_kind(0) != iced_x86.OpKind.REGISTER:
        return 0
    return int(iced_x86.RegisterInfo(decoded.op_register(0)).size) * 8


_SHAPES = (
    (r"PFRSQRT", Shape.POWERS),
    (r"FEMMS", Shape.EMPTIES),
    (r"RDTSCP", Shape.CLOCK),
    (r"RDRAND|RDSEED", Shape.RANDOM),
    (r"RDPID", Shape.NUMBER),
    (r"CMPXCHG16B", Shape.COMPARE),
    (r"CLZERO", Shape.LINE),
    (r"VMASKMOVDQU", Shape.TARGET),
    (r"VLDMXCSR", Shape.CONTROL),
    (r"EXTRQ|INSERTQ", Shape.FIELD),
    (r"V(P?GATHER)\w+", Shape.GATHER),
    (r"V?PCMP[EI]STR\w", Shape.STRINGS),
    (r"PI2F[DW]", Shape.INTEGERS),
    (r"VCVTPH2PS", Shape.HALVES),
    (r"V?(ADDSUB|HADD|HSUB|DP|ROUND|FN?M\w*|FRCZ)[PS]D", Shape.DOUBLES),
    (r"V?F(N?M)\w*[PS]D|VFRCZ[PS]D", Shape.DOUBLES),
    (r"V?(ADDSUB|HADD|HSUB|DP|ROUND)[PS]S|V?F(N?M)\w*[PS]S|VFRCZ[PS]S", Shape.SINGLES),
    (r"V(ADD|SUB|MUL|DIV|SQRT|MIN|MAX|CMP|U?COMI)[PS]D|VCVTT?[PS]D2\w+", Shape.DOUBLES),
    (r"V(ADD|SUB|MUL|DIV|SQRT|MIN|MAX|CMP|U?COMI)[PS]S|VCVTT?[PS]S2\w+", Shape.SINGLES),
    (r"PF\w+", Shape.SINGLES),
)


def _shape(mnemonic: str) -> Shape:
    for pattern, shape in _SHAPES:
        if re.fullmatch(pattern, mnemonic):
            return shape
    return Shape.ANY
