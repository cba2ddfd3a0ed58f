"""The emulation core: beside this machine's CPU, beside a reference of SSE4a, beside a decoder."""

import json
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import iced_x86
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isthmus.translate._core import ffi, lib

from isthmus.translate.table import Status, instructions, translatable

CORE = Path(str(resources.files("isthmus.translate"))) / "core"
HARNESS = Path(__file__).with_name("core_on_this_cpu.c")
MASK = (1 << 64) - 1
quad = st.integers(0, MASK)


def build(folder: Path, *flags: str) -> Path:
    program = folder / "harness"
    sources = [HARNESS, CORE / "decode.c", CORE / "execute.c"]
    command = ["gcc", "-O1", "-g", *flags, f"-I{CORE}", "-o", program, *sources]
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


def execute(code: bytes, **state: object):
    """Run one instruction on a fresh register file; None if the core declines it."""
    cpu, insn = ffi.new("struct ic_cpu *"), ffi.new("struct ic_insn *")
    cpu.mode = 64
    data = ffi.new("uint8_t[16]")
    for name, value in state.items():
        if name.startswith("xmm"):
            ffi.memmove(cpu.xmm[int(name[3:])], value.to_bytes(16, "little"), 16)
        else:
            setattr(cpu, name, value)
    if not lib.ic_decode(code, len(code), cpu, insn) or not lib.ic_execute(insn, cpu, data):
        return None
    return cpu


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
    cpu = execute(bytes([0x66, rex, 0x0F, 0x78, byte, length, index]), **{f"xmm{rm}": value})
    assert xmm(cpu, rm) & MASK == value >> (index & 63) & field(length & 63)


@given(value=quad, control=quad, reg=registers, rm=registers)
def test_extrq_register(value: int, control: int, reg: int, rm: int) -> None:
    rex, byte = modrm(reg, rm)
    cpu = execute(bytes([0x66, rex, 0x0F, 0x79, byte]), **{f"xmm{reg}": value, f"xmm{rm}": control})
    source = control if reg == rm else value
    expected = source >> (control >> 8 & 63) & field(control & 63)
    assert xmm(cpu, reg) & MASK == expected


@given(base=quad, piece=quad, length=st.integers(0, 255), index=st.integers(0, 255))
def test_insertq_immediate(base: int, piece: int, length: int, index: int) -> None:
    cpu = execute(bytes([0xF2, 0x0F, 0x78, 0xCA, length, index]), xmm1=base, xmm2=piece)
    mask = field(length & 63)
    expected = base & ~(mask << (index & 63)) | (piece & mask) << (index & 63)
    assert xmm(cpu, 1) & MASK == expected & MASK


@given(base=quad, piece=quad, control=quad)
def test_insertq_register(base: int, piece: int, control: int) -> None:
    cpu = execute(bytes([0xF2, 0x0F, 0x79, 0xCA]), xmm1=base, xmm2=piece | control << 64)
    mask, index = field(control & 63), control >> 8 & 63
    assert xmm(cpu, 1) & MASK == (base & ~(mask << index) | (piece & mask) << index) & MASK


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


@settings(max_examples=3000)
@given(code=st.binary(max_size=18), mode=st.sampled_from([16, 32, 64]))
def test_decodes_as_the_decoder_does(code: bytes, mode: int) -> None:
    """Whatever the core takes, an independent decoder calls by the same name and length."""
    cpu, insn = ffi.new("struct ic_cpu *"), ffi.new("struct ic_insn *")
    cpu.mode = mode
    if not lib.ic_decode(code, len(code), cpu, insn):
        return
    other = iced_x86.Decoder(mode, code).decode()
    names = {value: name for name, value in vars(iced_x86.Mnemonic).items() if name.isupper()}
    assert names[other.mnemonic] == ffi.string(lib.ic_name(insn.op)).decode()
    assert other.len == insn.length


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


def test_the_table_and_the_core_agree() -> None:
    names = {ffi.string(lib.ic_name(op)).decode() for op in range(1, lib.IC_OPS)}
    table = {row.mnemonic for row in instructions() if row.status is not Status.SILENT}
    assert names == table
    assert translatable() == {"lahf-lm", "monitor", "movbe", "popcnt", "rdtscp", "sse4a"}


def test_every_row_has_a_source() -> None:
    data = resources.files("isthmus.translate").joinpath("data/instructions.json").read_bytes()
    assert all(row["source"] and row["encoding"] for row in json.loads(data)["instructions"])
