"""The emulation core: beside this machine's CPU, beside a reference of SSE4a, beside a decoder."""

import json
import math
import shutil
import struct
import subprocess
from fractions import Fraction
from importlib import resources
from pathlib import Path

import iced_x86
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.translate._core import ffi

from isthmus.translate.build_core import WARNINGS, sources
from isthmus.translate.machine import Kind, Machine, PageFaultError, UnansweredError, mnemonics
from isthmus.translate.page import page
from isthmus.translate.table import Status, instructions, translatable

CORE = Path(str(resources.files("isthmus.translate"))) / "core"
HARNESS = Path(__file__).with_name("core_on_this_cpu.c")
MASK = (1 << 64) - 1
quad = st.integers(0, MASK)


def build(folder: Path, *flags: str) -> Path:
    program = folder / "harness"
    files = [HARNESS, *(CORE / name for name in sources())]
    command = ["gcc", "-O1", "-g", *flags, f"-I{CORE}", "-o", program, *files]
    subprocess.run(command, check=True)
    return program


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize("flags", [(), ("-fsanitize=address,undefined", "-fno-sanitize-recover")])
def test_agrees_with_this_cpu(tmp_path: Path, flags: tuple[str, ...]) -> None:
    output = subprocess.run(
        [build(tmp_path, *flags), "20000"], check=True, capture_output=True, text=True
    ).stdout
    rows = [line.split() for line in output.splitlines()]
    assert {"LAHF", "SAHF"} <= {row[0] for row in rows}
    assert {row[0]: int(row[2]) for row in rows if row[2] != "0"} == {}


class Bytes:
    """Flat memory that holds what was put there; the rest is not mapped."""

    def __init__(self, contents: dict[int, bytes] | None = None) -> None:
        self.contents = contents or {}
        self.asked: list[int] = []

    def load(self, address: int, size: int) -> bytes:
        self.asked.append(address)
        if address not in self.contents:
            raise PageFaultError(address, 4)
        return self.contents[address][:size]

    def store(self, address: int, data: bytes) -> None:
        self.asked.append(address)
        self.contents[address] = data


def machine(**state: object) -> Machine:
    """A fresh register file in 64-bit mode, SSE switched on."""
    fresh = Machine()
    fresh.state.mode, fresh.state.cr4 = 64, 0x200
    for name, value in state.items():
        if name.startswith("xmm"):
            ffi.memmove(fresh.state.xmm[int(name[3:])], value.to_bytes(16, "little"), 16)
        elif name.startswith("mmx"):
            ffi.memmove(fresh.state.mmx[int(name[3:])], value.to_bytes(8, "little"), 8)
        elif name.startswith("gpr"):
            fresh.state.gpr[int(name[3:])] = value
        else:
            setattr(fresh.state, name, value)
    return fresh


def execute(code: bytes, **state: object):
    """Run one instruction on a fresh register file; None if the core declines it."""
    fresh = machine(**state)
    return fresh.state if fresh.execute(code, Bytes()) is Kind.DONE else None


def xmm(cpu, number: int) -> int:
    return int.from_bytes(bytes(ffi.buffer(cpu.xmm[number], 16)), "little")


def field(length: int) -> int:
    """AMD APM vol. 4: a length of 0 means 64."""
    return MASK if length == 0 else (1 << length) - 1


registers = st.integers(0, 15)


def modrm(reg: int, rm: int) -> tuple[int, int]:
    """REX and ModRM for two XMM registers."""
    return 0x40 | (reg >> 3) << 2 | rm >> 3, 0xC0 | (reg & 7) << 3 | rm & 7


@given(value=quad, length=st.integers(0, 255), index=st.integers(0, 255), rm=registers)
def test_extrq_immediate(value: int, length: int, index: int, rm: int) -> None:
    rex, byte = modrm(0, rm)
    before = {f"xmm{rm}": value | 5 << 64}  # the upper quadword goes, as on Zen 5
    cpu = execute(bytes([0x66, rex, 0x0F, 0x78, byte, length, index]), **before)
    assert xmm(cpu, rm) == value >> (index & 63) & field(length & 63)


@given(value=quad, control=quad, reg=registers, rm=registers)
def test_extrq_register(value: int, control: int, reg: int, rm: int) -> None:
    rex, byte = modrm(reg, rm)
    cpu = execute(bytes([0x66, rex, 0x0F, 0x79, byte]), **{f"xmm{reg}": value, f"xmm{rm}": control})
    source = control if reg == rm else value
    expected = source >> (control >> 8 & 63) & field(control & 63)
    assert xmm(cpu, reg) == expected


@given(base=quad, piece=quad, length=st.integers(0, 255), index=st.integers(0, 255))
def test_insertq_immediate(base: int, piece: int, length: int, index: int) -> None:
    cpu = execute(bytes([0xF2, 0x0F, 0x78, 0xCA, length, index]), xmm1=base, xmm2=piece)
    mask = field(length & 63)
    expected = base & ~(mask << (index & 63)) | (piece & mask) << (index & 63)
    assert xmm(cpu, 1) == expected & MASK


@given(base=quad, piece=quad, control=quad)
def test_insertq_register(base: int, piece: int, control: int) -> None:
    cpu = execute(bytes([0xF2, 0x0F, 0x79, 0xCA]), xmm1=base, xmm2=piece | control << 64)
    mask, index = field(control & 63), control >> 8 & 63
    assert xmm(cpu, 1) == (base & ~(mask << index) | (piece & mask) << index) & MASK


@given(tsc=quad, aux=st.integers(0, (1 << 32) - 1))
def test_rdtscp(tsc: int, aux: int) -> None:
    cpu = execute(b"\x0f\x01\xf9", tsc=tsc, tsc_aux=aux)
    assert (cpu.gpr[2] << 32 | cpu.gpr[0], cpu.gpr[1], cpu.rip) == (tsc, aux, 3)


def test_waiting_is_the_kernels() -> None:
    assert execute(b"\x0f\x01\xc9", cpl=0) is not None
    assert execute(b"\x0f\x01\xc9", cpl=3) is None


@pytest.mark.parametrize(
    "code",
    ["0f0b", "0fb9c0", "0fff", "f0f30fb8c0", "f30fbdc0", "0f78c0", "0f01c1", "c5f877", "66", ""],
)
def test_declines_what_is_not_its_own(code: str) -> None:
    assert execute(bytes.fromhex(code), cpl=3) is None


NAMES = {value: name for name, value in vars(iced_x86.Mnemonic).items() if name.isupper()}


def named(instruction: iced_x86.Instruction) -> str:
    """The decoder's name; the aliases of PREFETCHW have names of their own there."""
    name = NAMES[instruction.mnemonic]
    alias = name.startswith("PREFETCH") and name != "PREFETCH"
    return "PREFETCHW" if alias else name


@settings(max_examples=3000)
@given(code=st.binary(max_size=18), mode=st.sampled_from([16, 32, 64]))
def test_decodes_as_the_decoder_does(code: bytes, mode: int) -> None:
    """Whatever the core takes, an independent decoder calls by the same name and length."""
    fresh = machine(mode=mode)
    if fresh.execute(code, Bytes()) not in {Kind.DONE, Kind.FAULT}:
        return
    other = iced_x86.Decoder(mode, code).decode()
    assert named(other) == fresh.mnemonic
    assert other.len == fresh.outcome.length


_LOW = ["AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI"]
_HIGH = [f"R{number}" for number in range(8, 16)]
NUMBERS = {  # register of the decoder: (number of the encoding, bits)
    getattr(iced_x86.Register, name): (number, bits)
    for bits, names in (
        (64, [f"R{name}" for name in _LOW] + _HIGH),
        (32, [f"E{name}" for name in _LOW] + [f"{name}D" for name in _HIGH]),
        (16, _LOW),
    )
    for number, name in enumerate(names)
}
SEGMENTS = [getattr(iced_x86.Register, name) for name in ("ES", "CS", "SS", "DS", "FS", "GS")]


@settings(max_examples=3000)
@given(
    mode=st.sampled_from([16, 32, 64]),
    prefixes=st.lists(st.sampled_from(b"\x26\x2e\x36\x3e\x64\x65\x66\x67"), max_size=3),
    rex=st.integers(0x40, 0x4F),
    tail=st.binary(min_size=7, max_size=7),
    values=st.lists(st.integers(0, (1 << 46) - 1), min_size=16, max_size=16),
    bases=st.lists(st.integers(0, (1 << 40) - 1), min_size=6, max_size=6),
)
def test_addresses_as_the_decoder_does(mode, prefixes, rex, tail, values, bases) -> None:
    """Every form of addressing in every mode, against an independent implementation."""
    prefix = bytes(prefixes) + (bytes([rex]) if mode == 64 else b"")
    code = prefix + b"\x0f\x38\xf0" + tail  # MOVBE: a load
    fresh = machine(mode=mode, rip=0x123456 if mode != 16 else 0x1234)
    for number in range(16):
        fresh.state.gpr[number] = values[number]
    for number in range(6):
        fresh.state.segment_base[number] = bases[number]
    memory = Bytes()
    kind = fresh.execute(code, memory)
    instruction = iced_x86.Decoder(mode, code, ip=int(fresh.state.rip)).decode()
    if NAMES[instruction.mnemonic] != "MOVBE":
        assert kind is Kind.NOT_OURS
        return

    def value_of(register: int) -> int:
        if register in {iced_x86.Register.NONE, iced_x86.Register.RIP, iced_x86.Register.EIP}:
            return 0  # the decoder has added RIP to the displacement
        number, bits = NUMBERS[register]
        return values[number] & ((1 << bits) - 1)

    offset = instruction.memory_displacement + value_of(instruction.memory_base)
    offset += value_of(instruction.memory_index) * instruction.memory_index_scale
    width = {64: 32, 32: 16, 16: 32}[mode] if 0x67 in prefixes else mode
    segment = SEGMENTS.index(instruction.memory_segment)
    base = 0 if mode == 64 and segment < 4 else bases[segment]
    expected = (offset % (1 << width) + base) & (MASK if mode == 64 else 0xFFFFFFFF)
    if kind is Kind.FAULT and fresh.outcome.vector in {12, 13}:
        assert expected >> 47 not in {0, MASK >> 47}
    else:
        assert memory.asked == [expected]


@given(
    prefix=st.sampled_from([b"", b"\x66", b"\xf2", b"\xf3", b"\x66\xf2", b"\x64", b"\x67"]),
    rex=st.sampled_from([b"", b"\x40", b"\x48", b"\x4d", b"\x45"]),
    opcode=st.sampled_from([b"\x0f\xb8", b"\x0f\x78", b"\x0f\x79", b"\x0f\x2b", b"\x0f\x38\xf0"]),
    rest=st.binary(min_size=8, max_size=8),
)
@settings(max_examples=3000)
def test_decodes_its_own_as_the_decoder_does(
    prefix: bytes, rex: bytes, opcode: bytes, rest: bytes
) -> None:
    test_decodes_as_the_decoder_does.hypothesis.inner_test(prefix + rex + opcode + rest, 64)


@given(suffix=st.integers(0, 255), modrm=st.integers(0xC0, 0xFF), d=quad, s=quad)
@settings(max_examples=1000)
def test_3dnow_as_the_decoder_does(suffix: int, modrm: int, d: int, s: int) -> None:
    code = bytes([0x0F, 0x0F, modrm, suffix])
    state = {f"mmx{modrm & 7}": s, f"mmx{modrm >> 3 & 7}": d}
    fresh = machine(**state)
    kind = fresh.execute(code, Bytes())
    known = NAMES[iced_x86.Decoder(64, code).decode().mnemonic]
    if kind is Kind.DONE:
        assert known == fresh.mnemonic
    else:  # the Geode's own PFRCPV and PFRSQRTV are on no server
        assert known in {"INVALID", "PFRCPV", "PFRSQRTV"}


single = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)


def pair(low: float, high: float) -> int:
    return int.from_bytes(struct.pack("<2f", low, high), "little")


def rounded(value: Fraction | float) -> float | None:
    """To single precision, to nearest even; None where 3DNow! has rules of its own."""
    exact = Fraction(value)
    if exact and not Fraction(2) ** -126 <= abs(exact) < Fraction(2) ** 127:
        return None
    if not exact:
        return 0.0
    exponent = 0
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (exponent - 23)
    return float(round(exact / step) * step)  # round() of a Fraction is to nearest even


@pytest.mark.parametrize(
    ("suffix", "law"),
    [
        (0x9E, lambda d, s: d + s),
        (0x9A, lambda d, s: d - s),
        (0xAA, lambda d, s: s - d),
        (0xB4, lambda d, s: d * s),
    ],
)
@given(d=single, s=single)
@settings(max_examples=1000)
def test_3dnow_arithmetic_is_exact(suffix, law, d: float, s: float) -> None:
    expected = rounded(law(Fraction(d), Fraction(s)))
    if expected is None:
        return
    state = execute(bytes([0x0F, 0x0F, 0xC1, suffix]), mmx0=pair(d, 1.0), mmx1=pair(s, 1.0))
    assert struct.unpack("<2f", bytes(ffi.buffer(state.mmx[0], 8)))[0] == expected


@given(s=single.filter(lambda value: 1e-30 < abs(value) < 1e30))
@settings(max_examples=500)
def test_3dnow_estimates_are_good(s: float) -> None:
    for suffix, law in ((0x96, 1 / s), (0x97, math.copysign(abs(s) ** -0.5, s))):
        state = execute(bytes([0x0F, 0x0F, 0xC1, suffix]), mmx1=pair(s, 0.0))
        low, high = struct.unpack("<2f", bytes(ffi.buffer(state.mmx[0], 8)))
        assert low == high
        assert math.isclose(low, law, rel_tol=2**-23)


@pytest.mark.parametrize(
    ("code", "state", "vector"),
    [
        ("0f01f9", {"cr4": 4, "cpl": 3}, 13),  # RDTSCP, CR4.TSD
        ("660f79c1", {"cr0": 8}, 7),  # EXTRQ, CR0.TS
        ("0f0fc19e", {"cr0": 8}, 7),  # PFADD, CR0.TS
        ("0f01c8", {"gpr1": 1}, 13),  # MONITOR with an extension
        ("0f01c9", {"gpr1": 2}, 13),  # MWAIT with an unknown extension
        ("0f38f000", {"gpr0": 1 << 60}, 13),  # MOVBE, address not canonical
        ("0f38f000", {"gpr0": 1 << 47}, 13),  # nor this one, with four levels
        ("0f38f000", {"gpr0": 1 << 56, "cr4": 0x1000}, 13),  # with five
        ("0f38f00424", {"gpr4": 1 << 60}, 12),  # the same on the stack
        ("0f38f000", {"cpl": 3, "cr0": 1 << 18, "rflags": 1 << 18, "gpr0": 2}, 17),  # AC
        ("0f38f000", {"gpr0": 2}, 14),
    ],
)
def test_raises_what_the_cpu_would(code: str, state: dict[str, int], vector: int) -> None:
    given = {"cr4": 0x200} | state
    fresh = machine(**given)
    before = bytes(ffi.buffer(fresh.state))
    assert fresh.execute(bytes.fromhex(code), Bytes()) is Kind.FAULT
    assert fresh.outcome.vector == vector
    assert bytes(ffi.buffer(fresh.state)) == before, "a fault changes nothing"


@pytest.mark.parametrize("state", [{"cr0": 4}, {"cr4": 0}])
def test_sse_switched_off_is_a_true_ud(state: dict[str, int]) -> None:
    assert machine(**state).execute(bytes.fromhex("660f79c1"), Bytes()) is Kind.NOT_OURS


def test_page_faults_carry_address_and_code() -> None:
    fresh = machine(gpr0=0xDEAD000)
    assert fresh.execute(bytes.fromhex("f30fb800"), Bytes()) is Kind.FAULT
    assert (fresh.outcome.address, fresh.outcome.error_code) == (0xDEAD000, 4)


def test_asks_again_when_memory_was_not_at_hand() -> None:
    class Later(Bytes):
        def load(self, address: int, size: int) -> bytes:
            raise UnansweredError

    fresh = machine(gpr0=0x1000)
    code = bytes.fromhex("f30fb808")
    assert fresh.execute(code, Later()) is Kind.PENDING
    assert fresh.execute(code, Bytes({0x1000: b"\xff\x01\0\0"})) is Kind.DONE
    assert fresh.state.gpr[1] == 9


@pytest.mark.parametrize(
    "code", ["0f0f4008bf", "66480f38f1848000000000", "f20f79c1", "660f78c10804"]
)
def test_says_how_many_bytes_it_wants(code: str) -> None:
    whole = bytes.fromhex(code)
    memory = Bytes({8: bytes(8)})
    assert machine(mmx0=0).execute(whole, memory) in {Kind.DONE, Kind.FAULT}
    for length in range(len(whole)):
        assert machine().execute(whole[:length], memory) is Kind.MORE_BYTES


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_is_freestanding(tmp_path: Path) -> None:
    """It needs no symbol but its own and what a compiler may always call."""
    objects = []
    for name in sources():
        objects.append(tmp_path / f"{name}.o")
        flags = ["-std=c11", "-O2", "-ffreestanding", "-nostdinc", "-Werror", *WARNINGS]
        own = ["gcc", "-print-file-name=include"]
        include = subprocess.run(own, check=True, capture_output=True, text=True).stdout.strip()
        subprocess.run(
            ["gcc", *flags, "-isystem", include, "-c", CORE / name, "-o", objects[-1]], check=True
        )
    listing = subprocess.run(["nm", *objects], check=True, capture_output=True, text=True).stdout
    words = [line.split()[-2:] for line in listing.splitlines() if len(line.split()) > 1]
    wanted = {name for kind, name in words if kind == "U"}
    had = {name for kind, name in words if kind != "U"}
    assert wanted - had <= {"memset", "memcpy", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}


def test_the_table_and_the_core_agree() -> None:
    names = mnemonics()
    done = Status.TRANSLATED
    assert names == {row.mnemonic for row in instructions() if row.status is done}
    everywhere = translatable()
    assert {"rdtscp", "sse4a", "popcnt", "movbe", "3dnow", "bmi2", "adx", "sha-ni"} <= everywhere
    # A silent or a missing instruction, or upper halves of registers, keep a feature out.
    assert not {"bmi1", "abm", "avx", "avx2", "fma", "xop", "aes"} & everywhere
    without_avx = translatable(avx=False)
    assert {"aes", "pclmulqdq", "gfni"} <= without_avx
    assert not {"avx2", "fma", "fma4", "xop", "f16c", "vaes"} & without_avx


def test_every_translated_row_names_what_it_was_compared_with() -> None:
    assert all(row.oracle for row in instructions() if row.status is Status.TRANSLATED)


def test_the_page_of_coverage_is_current() -> None:
    assert Path("docs/coverage.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    ("code", "given", "expected"),
    [
        ("c7f810000000", {"gpr0": MASK}, {"gpr0": 0, "rip": 0x16}),  # XBEGIN aborts: no retry
        ("c6f807", {}, {"rip": 3}),  # XABORT outside a transaction
        ("0f01d6", {"rflags": 0x8D7}, {"rflags": 0x42}),  # XTEST: not in one
        ("0f01e8", {}, {"rip": 3}),  # SERIALIZE
        ("f30fc7f8", {"tsc_aux": 7}, {"gpr0": 7}),  # RDPID
        (
            "480fc7f0",
            {"random": 1 << 40 | 5, "random_valid": 1},
            {"gpr0": 1 << 40 | 5, "rflags": 1},
        ),
        ("0fc7f8", {"random": 9, "random_valid": 0}, {"gpr0": 0, "rflags": 0}),  # RDSEED: dry
        ("660faef0", {"rflags": 0x8D7}, {"rflags": 2}),  # TPAUSE ends at once
        ("f20faef0", {"rflags": 0x8D7}, {"rflags": 2}),  # UMWAIT too
        ("0f01fb", {}, {"rip": 3}),  # MWAITX
        ("0f01fd", {"gpr1": 0, "tsc": 3 << 32 | 4}, {"gpr0": 4, "gpr2": 3}),  # RDPRU
        ("0f01fd", {"gpr1": 9, "tsc": 3 << 32 | 4}, {"gpr0": 0, "gpr2": 0}),
    ],
)
def test_instructions_of_one_maker(
    code: str, given: dict[str, int], expected: dict[str, int]
) -> None:
    """What the manuals say of them (Intel SDM vol. 2; AMD APM vol. 3)."""
    state = execute(bytes.fromhex(code), **given)
    assert state is not None
    for name, value in expected.items():
        seen = state.gpr[int(name[3:])] if name.startswith("gpr") else getattr(state, name)
        assert seen == value, name


def test_instructions_that_store_much() -> None:
    fresh = machine(gpr0=0x1010)
    memory = Bytes({})
    assert fresh.execute(b"\x0f\x01\xfc", memory) is Kind.DONE  # CLZERO: the whole line
    assert memory.contents == {0x1000: bytes(64)}
    fresh = machine(gpr0=0x2000, gpr6=0x1003)
    memory = Bytes({0x1003: bytes(range(64))})
    assert fresh.execute(bytes.fromhex("660f38f806"), memory) is Kind.DONE  # MOVDIR64B
    assert memory.contents[0x2000] == bytes(range(64))
    fresh = machine(gpr0=0x2001, gpr6=0x1003)
    assert fresh.execute(bytes.fromhex("660f38f806"), memory) is Kind.FAULT
    assert fresh.outcome.vector == 13
    for code in ("0f01fa", "f30faef0"):  # MONITORX, UMONITOR: they read what they watch
        memory = Bytes({0x1000: b"x"})
        assert machine(gpr0=0x1000).execute(bytes.fromhex(code), memory) is Kind.DONE
        assert machine(gpr0=0x5000).execute(bytes.fromhex(code), memory) is Kind.FAULT


def test_an_unmasked_floating_point_exception_is_the_guests() -> None:
    """HADDPS of infinities of both signs: invalid, unmasked: #XM, or #UD without OSXMMEXCPT."""
    infinities = int.from_bytes(struct.pack("<4f", math.inf, -math.inf, 1, 1), "little")
    for cr4, kind in ((0x600, Kind.FAULT), (0x200, Kind.NOT_OURS)):
        fresh = machine(xmm0=infinities, mxcsr=0x1F00, cr4=cr4)
        assert fresh.execute(bytes.fromhex("f20f7cc0"), Bytes()) is kind
        assert xmm(fresh.state, 0) == infinities
    fresh = machine(xmm0=infinities, mxcsr=0x1F00, cr4=0x600)
    fresh.execute(bytes.fromhex("f20f7cc0"), Bytes())
    assert (fresh.outcome.vector, fresh.state.mxcsr) == (19, 0x1F01)


def test_alignment_and_upper_halves() -> None:
    load = bytes.fromhex("660f3800 06")  # PSHUFB XMM0, [RSI]
    fresh = machine(gpr6=0x1008)
    assert fresh.execute(load, Bytes({0x1008: bytes(16)})) is Kind.FAULT
    assert fresh.outcome.vector == 13
    misaligned = machine(gpr6=0x1008, mxcsr=0x20000)  # AMD's MXCSR.MM allows it
    assert misaligned.execute(load, Bytes({0x1008: bytes(16)})) is Kind.DONE
    vpaddb = bytes.fromhex("c5fdfcc0")
    assert machine(cr4=0x40200).execute(vpaddb, Bytes()) is Kind.LACKS_STATE
    assert machine(cr4=0x200, has_ymm=1).execute(vpaddb, Bytes()) is Kind.NOT_OURS


def test_every_row_has_a_source() -> None:
    data = resources.files("isthmus.translate").joinpath("data/instructions.json").read_bytes()
    assert all(row["source"] and row["encoding"] for row in json.loads(data)["instructions"])
