"""AMD's instructions: the emulation core beside Bochs' CPU, an independent implementation.

A few thousand random cases in every run, 100,000 of each group under ``script/test --slow``.  What
this Bochs lacks (TBM, VPSHA) is compared with the manual's formulas, written here a second time.
"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isthmus.translate._core import ffi

from isthmus.translate.machine import Kind, Machine

HERE = Path(__file__).parent
PACKAGE = importlib.util.find_spec("bochscpu")
TRINITY = "_Z24create_trinity_apu_cpuidP8BX_CPU_C"
PHENOM = "_Z32create_phenom_8650_toliman_cpuidP8BX_CPU_C"

needs_bochs = pytest.mark.skipif(
    PACKAGE is None or shutil.which("gcc") is None, reason="no package bochscpu-python here"
)


def beside_bochs(folder: Path, model: str, group: str, cases: int) -> dict[str, dict[str, int]]:
    shim = folder / "shim.so"
    source = HERE / "bochs_shim.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    (extension,) = Path(PACKAGE.origin).parent.glob("_bochscpu*.so")
    settings = {"LD_PRELOAD": str(shim), "BOCHS_SO": str(extension), "BOCHS_MODEL": model}
    command = [sys.executable, HERE / "bochs_oracle.py", "1", str(cases), group]
    done = subprocess.run(
        command, env=os.environ | settings,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, dict[str, int]] = json.loads(done.stdout)
    return answer


GROUPS = [(TRINITY, "xop"), (TRINITY, "fma4"), (TRINITY, "sse4a"), (PHENOM, "3dnow")]


@needs_bochs
@pytest.mark.parametrize(("model", "group"), GROUPS, ids=[group for _, group in GROUPS])
def test_agrees_with_bochs(tmp_path: Path, model: str, group: str) -> None:
    answer = beside_bochs(tmp_path, model, group, 4000)
    assert answer["wrong"] == {}
    assert sum(answer["tried"].values()) > 3000
    assert all(name.startswith("VPSHA") for name in answer["unknown"])


@needs_bochs
@pytest.mark.slow
@pytest.mark.parametrize(("model", "group"), GROUPS, ids=[group for _, group in GROUPS])
def test_agrees_with_bochs_a_hundred_thousand_times(tmp_path: Path, model: str, group: str) -> None:
    answer = beside_bochs(tmp_path, model, group, 130_000)
    assert answer["wrong"] == {}
    assert sum(answer["tried"].values()) >= 100_000


class NoMemory:
    def load(self, _address: int, size: int) -> bytes:
        return bytes(size)

    def store(self, _address: int, _data: bytes) -> None:
        return


# AMD APM vol. 3, TBM: each instruction's formula, and what sets the carry.
TBM = {
    (1, 1): ("BLCFILL", lambda x, m: x & (x + 1), lambda x, m: x == m),
    (1, 2): ("BLSFILL", lambda x, m: x | (x - 1), lambda x, m: x == 0),
    (1, 3): ("BLCS", lambda x, m: x | (x + 1), lambda x, m: x == m),
    (1, 4): ("TZMSK", lambda x, m: ~x & (x - 1), lambda x, m: x == 0),
    (1, 5): ("BLCIC", lambda x, m: ~x & (x + 1), lambda x, m: x == m),
    (1, 6): ("BLSIC", lambda x, m: ~x | (x - 1), lambda x, m: x == 0),
    (1, 7): ("T1MSKC", lambda x, m: ~x | (x + 1), lambda x, m: x == m),
    (2, 1): ("BLCMSK", lambda x, m: x ^ (x + 1), lambda x, m: x == m),
    (2, 6): ("BLCI", lambda x, m: x | ~(x + 1), lambda x, m: x == m),
}


@given(
    form=st.sampled_from(sorted(TBM)),
    value=st.one_of(
        st.integers(0, (1 << 64) - 1), st.sampled_from([0, (1 << 32) - 1, (1 << 64) - 1])
    ),
    wide=st.booleans(),
)
def test_tbm_by_the_manuals_formulas(form: tuple[int, int], value: int, wide: bool) -> None:
    check_tbm(Machine(), form, value, wide)


@pytest.mark.slow
def test_tbm_by_the_manuals_formulas_a_hundred_thousand_times() -> None:
    rng = random.Random(7)
    machine = Machine()
    for case in range(120_000):
        form = rng.choice(sorted(TBM))
        value = rng.getrandbits(64) if case & 1 else ~(-1 << rng.randrange(65)) << rng.randrange(64)
        check_tbm(machine, form, value & (1 << 64) - 1, rng.random() < 0.5)


def check_tbm(machine: Machine, form: tuple[int, int], value: int, wide: bool) -> None:
    opcode, extension = form
    name, formula, carry = TBM[form]
    mask = (1 << 64) - 1 if wide else (1 << 32) - 1
    machine.state.mode, machine.state.rflags = 64, 0x8D7
    machine.state.gpr[1] = value
    # The result goes to vvvv, here RAX (inverted: 1111); the operand is RCX.
    code = bytes([0x8F, 0xE9, 0x78 | wide << 7, opcode, 0xC1 | extension << 3])
    assert machine.execute(code, NoMemory()) is Kind.DONE
    assert machine.mnemonic == name
    result = formula(value & mask, mask) & mask
    assert machine.state.gpr[0] == result
    flags = machine.state.rflags
    assert bool(flags & 1) == carry(value & mask, mask)
    assert bool(flags & 0x40) == (result == 0)
    assert bool(flags & 0x80) == bool(result >> (63 if wide else 31))
    assert not flags & 0x800


@given(
    words=st.lists(st.integers(-(1 << 31), (1 << 31) - 1), min_size=4, max_size=4),
    counts=st.lists(st.integers(-128, 127), min_size=4, max_size=4),
)
def test_vpshad_by_the_manuals_formula(words: list[int], counts: list[int]) -> None:
    """AMD APM vol. 6, VPSHAD: left if positive, else right with the sign, modulo 32."""
    machine = Machine()
    state = machine.state
    state.mode, state.cr4, state.has_ymm = 64, 0x40200, 1
    ffi.memmove(state.xmm[3], b"".join(w.to_bytes(4, "little", signed=True) for w in words), 16)
    ffi.memmove(state.xmm[2], b"".join(c.to_bytes(4, "little", signed=True) for c in counts), 16)
    assert machine.execute(bytes.fromhex("8fe9689acb"), NoMemory()) is Kind.DONE
    assert machine.mnemonic == "VPSHAD"
    expected = b"".join(
        ((word << count % 32 if count >= 0 else word >> -count % 32) & 0xFFFFFFFF).to_bytes(
            4, "little"
        )
        for word, count in zip(words, counts, strict=True)
    )
    assert bytes(ffi.buffer(state.xmm[1], 16)) == expected
