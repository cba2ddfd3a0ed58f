"""Vector and bit instructions: the emulation core beside this machine's CPU, register by register.

Every opcode of the maps is offered to the core with random registers and operands; what it takes
must be called the same by an independent decoder, and must do what this CPU does, in 20 random
states each in every run, in some 1,000,000 under ``script/test --slow``.
"""

import random
import shutil
import subprocess
from collections import Counter
from importlib import resources
from pathlib import Path

import iced_x86
import pytest

from isthmus.translate.build_core import sources
from isthmus.translate.machine import Kind, Machine
from isthmus.translate.table import instructions

CORE = Path(str(resources.files("isthmus.translate"))) / "core"
HARNESS = Path(__file__).with_name("vectors_on_this_cpu.c")
NAMES = {value: name for name, value in vars(iced_x86.Mnemonic).items() if name.isupper()}
ALIASES = {
    "PCMPESTRM64": "PCMPESTRM", "PCMPESTRI64": "PCMPESTRI", "PREFETCHWT1": "PREFETCHW",
    "VPCMPESTRM64": "VPCMPESTRM", "VPCMPESTRI64": "VPCMPESTRI",
}  # fmt: skip
# The harness's `enum special`.
SPECIAL = {"VMASKMOVDQU": -3, "VLDMXCSR": -4,
           "DPPS": -7, "VDPPS": -7, "DPPD": -8, "VDPPD": -8,
           **dict.fromkeys(("VRCPPS", "VRCPSS", "VRSQRTPS", "VRSQRTSS"), -10),
           **dict.fromkeys(
               ("SHA1NEXTE", "SHA1MSG1", "SHA1MSG2", "SHA1RNDS4", "SHA256RNDS2", "SHA256MSG1",
                "SHA256MSG2"), -6)}  # fmt: skip

# Random, dependent on the machine or the operating system, privileged, or beyond the harness.
LEFT_OUT = {
    "RDRAND", "RDSEED", "RDPID", "RDTSCP", "RDPRU", "XBEGIN", "XEND", "XABORT", "MOVDIR64B",
    "CLZERO", "MONITOR", "MWAIT", "MONITORX", "MWAITX", "UMONITOR", "UMWAIT", "TPAUSE", "PREFETCH",
    "PREFETCHW", "SERIALIZE", "EXTRQ", "INSERTQ", "MOVNTSS", "MOVNTSD", "LAHF", "SAHF", "FEMMS",
}  # fmt: skip
# Flags that are defined after an instruction; all arithmetic ones where nothing is said.
DEFINED = {
    "BEXTR": 0x841, "ANDN": 0x8C1, "BLSI": 0x8C1, "BLSR": 0x8C1, "BLSMSK": 0x8C1, "BZHI": 0x8C1,
}  # fmt: skip
REGISTERS = [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14]  # not RSP, RSI (the base), R15


class NoMemory:
    def load(self, _address: int, size: int) -> bytes:
        return bytes(size)

    def store(self, _address: int, _data: bytes) -> None:
        return


def encodings(rng: random.Random) -> list[tuple[bytes, int]]:
    """Instructions of every opcode, with bytes to spare, and a gather's mask register or -1.

    With VEX each also with VEX.vvvv unused, as those with one source demand.
    """
    made = []
    for vex in (False, True):
        for table in (1, 2, 3):
            for opcode in range(256):
                if table == 1 and opcode in {0x38, 0x3A}:
                    continue  # these lead to the other maps
                group = vex and table == 1 and opcode in {0x71, 0x72, 0x73, 0xAE}
                for choice in range(64 if vex else 16):
                    prefix, wide, memory = choice & 3, choice >> 2 & 1, choice >> 3 & 1
                    for reg in range(8) if group else [rng.choice(REGISTERS)]:
                        code, mask = one(
                            rng, vex, table, opcode, prefix, wide, memory, choice >> 4 & 1, reg,
                            rng.choice(REGISTERS) if choice & 32 else 0,
                        )  # fmt: skip
                        made.append((code + rng.randbytes(4), mask))
    return made


def one(
    rng: random.Random, vex: bool, table: int, opcode: int, prefix: int, wide: int, memory: int,
    long_vector: int, reg: int, vvvv: int,
) -> tuple[bytes, int]:  # fmt: skip
    rm = 6 if memory else rng.choice(REGISTERS)
    if vex:
        high = (0x80 if reg < 8 else 0) | 0x40 | (0x20 if rm < 8 else 0) | table
        code = [0xC4, high, wide << 7 | (~vvvv & 15) << 3 | long_vector << 2 | prefix, opcode]
    else:
        code = [{1: 0x66, 2: 0xF3, 3: 0xF2}[prefix]] if prefix else []
        rex = 0x40 | wide << 3 | (reg >> 3) << 2 | rm >> 3
        code += [rex] if rex != 0x40 else []
        code += {1: [0x0F], 2: [0x0F, 0x38], 3: [0x0F, 0x3A]}[table] + [opcode]
    if vex and table == 2 and opcode & 0xFC == 0x90 and memory:
        index = rng.choice([number for number in range(8) if number not in {reg, vvvv}])
        return bytes([*code, 0x44 | (reg & 7) << 3, index << 3 | 6, 0x20]), vvvv
    if memory:  # what VEX may leave unaligned, sometimes is
        offset = 0x23 if vex and opcode != 0x2A and rng.random() < 0.5 else 0x20
        return bytes([*code, 0x40 | (reg & 7) << 3 | 6, offset]), -1
    return bytes([*code, 0xC0 | (reg & 7) << 3 | rm & 7]), -1


def taken_by_core(full: bytes, bits: int = 64) -> tuple[str, int] | None:
    """The mnemonic and length of what the core takes for its own."""
    machine = Machine()
    state = machine.state
    state.mode, state.cr4, state.has_ymm, state.cpl = bits, 0x40600, 1, 3
    state.mxcsr = 0x1F80
    if machine.execute(full, NoMemory()) not in {Kind.DONE, Kind.FAULT}:
        return None
    return machine.mnemonic, machine.outcome.length


def build(folder: Path, *flags: str) -> Path:
    program = folder / "harness"
    files = [HARNESS, *(CORE / name for name in sources())]
    subprocess.run(
        ["gcc", "-O1", "-g", "-mavx2", *flags, f"-I{CORE}", "-o", program, *files], check=True
    )
    return program


def run(program: Path, lines: list[str]) -> list[list[str]]:
    """The harness's rows: the code, how many cases, how many faulted, how many were wrong."""
    done = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == len(lines)
    return rows


def beside_this_cpu(folder: Path, seed: int, cases: int, *flags: str) -> Counter[str]:
    lines, names = [], {}
    for full, mask in encodings(random.Random(seed)):
        taken = taken_by_core(full)
        other = iced_x86.Decoder(64, full).decode()
        if taken is None:
            continue
        mnemonic, length = taken
        theirs = NAMES[other.mnemonic]
        if mnemonic not in {"PREFETCH", "PREFETCHW"}:
            assert (ALIASES.get(theirs, theirs), other.len) == taken, full.hex()
        if mnemonic not in LEFT_OUT:
            code = full[:length].hex()
            names[code] = mnemonic
            special = SPECIAL.get(mnemonic, mask)
            lines.append(f"{code} {cases} {DEFINED.get(mnemonic, 0x8D5):x} {special}")
    rows = run(build(folder, *flags), lines)
    assert {row[0]: names[row[0]] for row in rows if row[1:] != ["missing"] and row[3] != "0"} == {}
    lacking = {row[0] for row in rows if row[1] == "missing"}
    assert {names[code] for code in lacking if of_avx(bytes.fromhex(code))} == set()
    return Counter(names[row[0]] for row in rows if row[0] not in lacking)


def of_avx(code: bytes, bits: int = 64) -> bool:
    """Whether it needs AVX and nothing else."""
    decoded = iced_x86.Decoder(bits, code).decode()
    return decoded.cpuid_features() == [iced_x86.CpuidFeature.AVX]


def has_avx2() -> bool:
    return " avx2 " in Path("/proc/cpuinfo").read_text()


pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or not has_avx2(), reason="no C compiler, or no AVX2 here"
)


def test_agrees_with_this_cpu(tmp_path: Path) -> None:
    tried = beside_this_cpu(tmp_path, 1, 20)
    assert len(tried) > 150


def test_agrees_under_sanitizers(tmp_path: Path) -> None:
    flags = ("-fsanitize=address,undefined", "-fno-sanitize-recover")
    assert beside_this_cpu(tmp_path, 2, 3, *flags)


def test_what_is_undefined_is_so_on_this_cpu(tmp_path: Path) -> None:
    """Of AVX's opcodes: a wrong W, L or vvvv, or a register where memory must be."""
    lines = []
    made = [full for full, _ in encodings(random.Random(5)) if full[0] == 0xC4]
    known = {(full[1] & 31, full[3]) for full in made if of_avx(full) and taken_by_core(full)}
    for full in made:
        wrong = NAMES[iced_x86.Decoder(64, full).decode().mnemonic] == "INVALID"
        if wrong and (full[1] & 31, full[3]) in known:
            assert taken_by_core(full) is None, full.hex()
            lines.append(f"{full.hex()} 1 0 -9")
    assert len(lines) > 3000
    rows = run(build(tmp_path), lines)
    assert [row for row in rows if row[1:] != ["missing"]] == []


@pytest.mark.parametrize("bits", [64, 32, 16])
def test_every_encoding_of_avx_is_taken(bits: int) -> None:
    """In every mode, and by the decoder's name: all that has a row in the table."""
    rows = {row.mnemonic for row in instructions() if row.feature == "avx"}
    found, lacking = set(), set()
    for full, _ in encodings(random.Random(6)):
        other = iced_x86.Decoder(bits, full).decode()
        name = ALIASES.get(NAMES[other.mnemonic], NAMES[other.mnemonic])
        if full[0] != 0xC4 or not of_avx(full, bits) or not {name, name[1:]} & rows:
            continue
        found.add(name)
        if taken_by_core(full, bits) != (name, other.len):
            lacking.add(full.hex())
    assert lacking == set()
    assert len(found) > 170


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_agrees_with_this_cpu_a_million_times(tmp_path: Path, seed: int) -> None:
    tried = beside_this_cpu(tmp_path, seed, 700)
    assert sum(tried.values()) * 700 > 1_000_000
