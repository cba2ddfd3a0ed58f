"""TBM beside clang: its tbmintrin.h states each instruction as C, and its optimiser knows BEXTR.

No emulator at hand has TBM.  The intrinsics are called on constants, so clang computes the results
itself and the program holds none of the instructions; on a CPU without TBM it would die otherwise.
Flags are judged by the manual's formulas only (``test_core_bochs.py``).
"""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from isthmus.translate.machine import Kind, Machine, PageFaultError

FORMS = {
    (1, 1): "blcfill", (1, 2): "blsfill", (1, 3): "blcs", (1, 4): "tzmsk", (1, 5): "blcic",
    (1, 6): "blsic", (1, 7): "t1mskc", (2, 1): "blcmsk", (2, 6): "blci",
}  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("clang") is None, reason="no clang here")


class _Nothing:
    def load(self, address: int, size: int) -> bytes:
        raise PageFaultError(address, 4)

    def store(self, address: int, data: bytes) -> None:
        raise PageFaultError(address, 6)


def core(code: bytes, value: int) -> int:
    machine = Machine()
    machine.state.mode = 64
    machine.state.gpr[1] = value
    assert machine.execute(code, _Nothing()) is Kind.DONE
    return int(machine.state.gpr[0])


def test_tbm_as_clang_computes_it(tmp_path: Path) -> None:
    rng = random.Random(11)
    expressions, ours = [], []
    values = [0, 1, (1 << 32) - 1, 1 << 31, (1 << 64) - 1, 1 << 63]
    values += [rng.getrandbits(64) >> rng.randrange(64) for _ in range(40)]
    for value in values:
        for wide in (False, True):
            bits = 64 if wide else 32
            low = value & (1 << bits) - 1
            for (opcode, digit), name in FORMS.items():
                expressions.append(f"__{name}_u{bits}({low}ull)")
                code = bytes([0x8F, 0xE9, 0x78 | wide << 7, opcode, 0xC1 | digit << 3])
                ours.append(core(code, value))
            control = rng.randrange(65) << 8 | rng.randrange(64)
            expressions.append(f"__bextri_u{bits}({low}ull, {control})")
            code = bytes([0x8F, 0xEA, 0x78 | wide << 7, 0x10, 0xC1]) + control.to_bytes(4, "little")
            ours.append(core(code, value))
    lines = "".join(f"  tell({expression});\n" for expression in expressions)
    source = tmp_path / "tbm.c"
    source.write_text(
        "#include <stdio.h>\n#include <x86intrin.h>\n"
        "__attribute__((noinline)) static void tell(unsigned long long x)\n"
        '{ printf("%llu\\n", x); }\n'
        f'__attribute__((target("tbm"))) int main(void)\n{{\n{lines}  return 0;\n}}\n'
    )
    program = tmp_path / "tbm"
    subprocess.run(["clang", "-O2", source, "-o", program], check=True)
    listing = subprocess.run(
        ["objdump", "-d", program], capture_output=True, text=True, check=True
    ).stdout
    if any(f"\t{name} " in listing for name in [*FORMS.values(), "bextr"]):
        pytest.skip("this clang leaves the instructions to the CPU")
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == ours
