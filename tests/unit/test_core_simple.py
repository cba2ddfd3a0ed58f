"""Ordinary instructions between missing ones: beside this machine's CPU and beside a decoder."""

import random
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import iced_x86
import pytest

from isthmus.translate.build_core import sources
from isthmus.translate.machine import Kind, Machine, UnansweredError

CORE = Path(str(resources.files("isthmus.translate"))) / "core"
HARNESS = Path(__file__).with_name("vectors_on_this_cpu.c")
RIP = 0x1000
NAMES = {value: name for name, value in vars(iced_x86.Mnemonic).items() if name.isupper()}
INFO = iced_x86.InstructionInfoFactory()
SELDOM = {iced_x86.Register.RSP, iced_x86.Register.R15}  # the harness needs them


class Forbidden:
    """Memory that nothing gets an answer from."""

    def load(self, _address: int, _size: int) -> bytes:
        raise UnansweredError

    def store(self, _address: int, _data: bytes) -> None:
        raise UnansweredError


def encodings(count: int) -> list[bytes]:
    rng, made = random.Random(7), []
    for _ in range(count):
        prefix = rng.choice([b"", b"", b"\x66", b"\xf3", b"\xf2"])
        rex = rng.choice([b"", bytes([rng.randrange(0x40, 0x50)])])
        body = rng.choice([b"", b"\x0f"]) + rng.randbytes(1)
        modrm = bytes([rng.choice([0xC0, 0xC0, 0x00, 0x40]) | rng.randrange(64)])
        made.append((prefix + rex + body + modrm + rng.randbytes(10))[:15])
    return made


def run(code: bytes, *, ordinary: bool, mode: int = 64, flags: int = 2) -> tuple[Kind, Machine]:
    machine = Machine()
    state = machine.state
    state.mode, state.cr4, state.cpl, state.rip, state.rflags = mode, 0x40600, 3, RIP, flags
    state.ordinary = ordinary
    return machine.execute(code, Forbidden()), machine


def taken() -> list[tuple[bytes, iced_x86.Instruction]]:
    """What is done only when asked for, with the decoder's opinion."""
    found = []
    for code in encodings(60_000):
        machine = Machine()
        machine.state.mode, machine.state.cr4, machine.state.cpl = 64, 0x40600, 3
        if machine.execute(code, Forbidden()) is not Kind.NOT_OURS:
            continue
        kind, machine = run(code, ordinary=True)
        if kind is Kind.DONE:
            assert machine.mnemonic == ""
            decoded = iced_x86.Decoder(64, code, ip=RIP).decode()
            assert decoded.len == machine.outcome.length, code.hex()
            found.append((code[: decoded.len], decoded))
    return found


@pytest.fixture(scope="module")
def ordinary():
    return taken()


def test_none_touches_memory_or_goes_elsewhere_than_said(ordinary):
    for code, decoded in ordinary:
        info = INFO.info(decoded)
        name = NAMES[decoded.mnemonic]
        assert not info.used_memory(), (code.hex(), name)
        assert decoded.rflags_undefined in {0, iced_x86.RflagsBits.AF}, (code.hex(), name)
        if decoded.flow_control == iced_x86.FlowControl.NEXT:
            continue
        assert decoded.is_jcc_short_or_near or decoded.is_jmp_short_or_near, name
        ends = set()
        for flags in (2, 2 | 0x8D5, 2 | 0x80, 2 | 0x800, 2 | 4, 2 | 0x40, 2 | 1):
            _, machine = run(code, ordinary=True, flags=flags)
            ends.add(machine.state.rip)
        wanted = {decoded.near_branch_target}
        assert ends == (wanted | {RIP + len(code)} if decoded.is_jcc_short_or_near else wanted)


def test_the_set_is_worth_having(ordinary):
    names = {NAMES[decoded.mnemonic] for _, decoded in ordinary}
    assert {"MOV", "ADD", "XOR", "LEA", "NOP", "JMP", "JNE", "CMP", "TEST", "MOVZX", "MOVSXD",
            "MOVAPS", "MOVDQA", "MOVQ", "PXOR", "CMOVE", "SETB", "INC", "NEG"} <= names  # fmt: skip
    assert "PAUSE" not in names


def test_nothing_is_done_unless_asked_for(ordinary):
    assert {run(code, ordinary=False)[0] for code, _ in ordinary} == {Kind.NOT_OURS}


def test_bytes_that_end_inside_change_nothing(ordinary):
    for code, _ in ordinary[:2000]:
        for length in range(1, len(code)):
            kind, machine = run(code[:length], ordinary=True)
            assert kind is not Kind.DONE
            assert (machine.state.rip, list(machine.state.gpr)) == (RIP, [0] * 16), code.hex()


@pytest.mark.skipif(
    shutil.which("gcc") is None or " avx2 " not in Path("/proc/cpuinfo").read_text(),
    reason="no C compiler, or no AVX2 here",
)
def test_agrees_with_this_cpu(ordinary, tmp_path):
    program = tmp_path / "harness"
    files = [HARNESS, *(CORE / name for name in sources())]
    subprocess.run(["gcc", "-O1", "-mavx2", f"-I{CORE}", "-o", program, *files], check=True)
    lines = [
        f"{code.hex()} 20 8d5 -1"
        for code, decoded in ordinary
        if decoded.flow_control == iced_x86.FlowControl.NEXT
        and not decoded.is_ip_rel_memory_operand
        and not SELDOM
        & {iced_x86.RegisterExt.full_register(use.register)
           for use in INFO.info(decoded).used_registers()}
    ]  # fmt: skip
    assert len(lines) > 3000
    done = subprocess.run(
        [program, "ordinary"], input="\n".join(lines), capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(lines)
    assert [row for row in rows if row[1:] != ["20", "0", "0"]] == []
