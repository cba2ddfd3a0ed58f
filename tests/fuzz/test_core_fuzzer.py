"""Coverage-guided fuzzing of the emulation core (``core_fuzzer.c``) under sanitizers.

100,000 inputs in every run, 10,000,000 under ``script/test --slow``: some minutes on one core.
Skipped where clang or its libFuzzer is missing; ``script/setup --tests`` brings them.
"""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path

import pytest

from isthmus.translate.build_core import sources
from isthmus.translate.machine import Kind, Machine, PageFaultError, families, mnemonics

CORE = Path(str(resources.files("isthmus.translate"))) / "core"
HERE = Path(__file__).parent
FLAGS = (
    "-std=c11",
    "-O2",
    "-g",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
)
TARGET = "#include <stdint.h>\n#include <stddef.h>\nint LLVMFuzzerTestOneInput(const uint8_t *d, "
TARGET += "size_t n) { return d && n > 99; }"


@cache
def has_libfuzzer() -> bool:
    if shutil.which("clang") is None:
        return False
    command = ["clang", *FLAGS, "-x", "c", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=TARGET.encode(), capture_output=True, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not has_libfuzzer(), reason="no clang with libFuzzer here")


class _Zeroes:
    def load(self, address: int, size: int) -> bytes:
        if address > 1 << 40:
            raise PageFaultError(address, 4)
        return bytes(size)

    def store(self, address: int, data: bytes) -> None:
        pass


def encodings() -> Iterator[bytes]:
    """Something of every opcode: legacy, VEX, XOP and EVEX, with a register and with memory."""
    tail = bytes.fromhex("0123456789abcdef")
    forms = (0x00, 0xC1, *range(0xC0, 0x100, 8), *range(0x00, 0x40, 8))
    prefixes = (b"", b"\x66", b"\xf3", b"\xf2", b"\x48", b"\x66\x48", b"\xf3\x48")
    maps = (b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"")
    for prefix, escape, opcode, form in product(prefixes, maps, range(256), forms):
        yield prefix + escape + bytes((opcode, form)) + tail
    for prefix, form in product(prefixes, range(0xC0, 0x100)):
        yield prefix + bytes((0x0F, 0x01, form)) + tail
    for opcode in range(256):
        yield bytes((0x0F, 0x0F, 0xC1, opcode))
        yield bytes((0x0F, 0x0F, 0x01, opcode))
    for lead, number, middle, opcode, form in product(
        ((0xC4, (1, 2, 3)), (0x8F, (8, 9, 10))), range(3), range(16), range(256), forms[:10]
    ):
        second = 0x70 | (middle & 7) | (middle & 8) << 4
        for vvvv in (0x78, 0x70):
            yield (
                bytes((lead[0], 0xE0 | lead[1][number], second & 0x87 | vvvv, opcode, form)) + tail
            )
    yield bytes.fromhex("62f17c4858c1")


@cache
def seeds() -> tuple[bytes, ...]:
    """One encoding of everything that the core can name, with a register and with memory."""
    machine, memory = Machine(), _Zeroes()
    state = machine.state
    found: dict[tuple[object, ...], bytes] = {}
    for code in encodings():
        state.mode, state.cpl, state.has_ymm, state.rip = 64, 0, 1, 0x1000
        state.cr0, state.cr4, state.mxcsr = 0, 0x40200, 0x1F80
        kind = machine.execute(code, memory)
        if kind is Kind.REFUSED:
            found.setdefault((machine.family,), code)
        elif machine.outcome.mnemonic:
            length = int(machine.outcome.length)
            key = (machine.outcome.mnemonic, kind, length)
            found.setdefault(key, code[:length])
    named = {number & 0xFFFF for number, *_ in found if isinstance(number, int)}
    assert len(named) > 0.95 * len(mnemonics())
    assert {name for name, *_ in found if isinstance(name, str)} == families()
    return tuple(found.values())


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fuzzer") / "core_fuzzer"
    files = [HERE / "core_fuzzer.c", *(CORE / name for name in sources())]
    subprocess.run(["clang", *FLAGS, f"-I{CORE}", *files, "-o", program], check=True)
    return program


def fuzz(fuzzer: Path, folder: Path, runs: int, seed: int, timeout: float) -> None:
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, code in enumerate(seeds()):
        for name, choices in (("plain", 8), ("user", 8 | 4), ("protected", 8 | 2)):
            (corpus / f"{name}{number}").write_bytes(bytes((choices,)) + bytes(15) + code)
    done = subprocess.run(
        [
            fuzzer, f"-runs={runs}", f"-seed={seed}", "-max_len=46", "-verbosity=0",
            "-print_final_stats=1", corpus,
        ],
        cwd=folder, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"number_of_executed_units: {runs}" in done.stderr


@pytest.mark.timeout(300)
def test_a_hundred_thousand_inputs(fuzzer: Path, tmp_path: Path) -> None:
    fuzz(fuzzer, tmp_path, 100_000, 1, 250)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_million_inputs(fuzzer: Path, tmp_path: Path) -> None:
    fuzz(fuzzer, tmp_path, 10_000_000, 2, 3500)
