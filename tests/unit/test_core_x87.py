"""FISTTP, and the x87 state around MMX, beside this machine's CPU; and what that cannot show."""

import shutil
import struct
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from isthmus.translate.build_core import sources
from isthmus.translate.machine import Kind, Machine, PageFaultError

TRANSLATE = Path(str(resources.files("isthmus.translate")))
HARNESS = Path(__file__).with_name("x87_on_this_cpu.c")
FISTTP = bytes.fromhex("dd0e")  # 64 bits, to [RSI]


class Memory:
    def __init__(self, *, there: bool = True) -> None:
        self.there = there
        self.stored: list[bytes] = []

    def load(self, address: int, size: int) -> bytes:
        if not self.there:
            raise PageFaultError(address, 4)
        return bytes(size)

    def store(self, address: int, data: bytes) -> None:
        if not self.there:
            raise PageFaultError(address, 6)
        self.stored.append(data)


def machine(**values: int) -> Machine:
    """One with 3.5 on its stack, at R7."""
    made = Machine()
    state = made.state
    state.mode, state.cr4, state.cpl, state.has_x87 = 64, 0x600, 3, 1
    state.x87_control, state.x87_status, state.x87_tags = 0x37F, 7 << 11, 0x80
    state.mmx[7], state.x87_high[7] = struct.pack("<Q", 7 << 61), 0x4000
    for name, value in values.items():
        setattr(state, name, value)
    return made


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("flags", "cases"),
    [
        ((), 100_000),
        (("-fsanitize=address,undefined", "-fno-sanitize-recover"), 5_000),
        (("-DPRELOAD",), 3_000),
    ],
    ids=["core", "sanitized", "preload"],
)
def test_agrees_with_this_cpu(tmp_path: Path, flags: tuple[str, ...], cases: int) -> None:
    """All sizes, roundings, masks, tags and tops; unmasked exceptions, and ones that waited."""
    files = [HARNESS, *(TRANSLATE / "core" / name for name in sources())]
    if "-DPRELOAD" in flags:
        files += [path for path in (TRANSLATE / "process").glob("*.c") if path.stem != "trap"]
    folders = [f"-I{TRANSLATE}", f"-I{TRANSLATE / 'core'}"]
    subprocess.run(
        ["gcc", "-O1", "-g", *flags, *folders, "-o", tmp_path / "x87", *files, "-ldl", "-lpthread"],
        check=True,
    )
    done = subprocess.run(
        [tmp_path / "x87", str(cases)], capture_output=True, text=True, timeout=120, check=True
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["FISTTP/16", "FISTTP/32", "FISTTP/64", "PSHUFB"]
    assert [row[2] for row in rows] == ["0"] * 4
    assert all(int(row[3]) > 0 for row in rows), "no exception waited"
    assert all(int(row[4]) > 0 for row in rows[:3]), "none was raised"


def test_stores_and_pops() -> None:
    made, memory = machine(), Memory()
    assert made.execute(FISTTP, memory) is Kind.DONE
    assert memory.stored == [struct.pack("<q", 3)]
    assert (made.state.x87_status, made.state.x87_tags) == (0x20, 0)


@pytest.mark.parametrize("values", [{}, {"x87_tags": 0}, {"x87_tags": 0, "x87_control": 0x37E}])
def test_a_page_fault_changes_nothing(values: dict[str, int]) -> None:
    """Even where an unmasked exception keeps it from storing."""
    made = machine(**values)
    tags = made.state.x87_tags
    assert made.execute(FISTTP, Memory(there=False)) is Kind.FAULT
    assert (made.outcome.vector, made.outcome.error_code) == (14, 6)
    assert (made.state.x87_status, made.state.x87_tags) == (7 << 11, tags)


@pytest.mark.parametrize(
    ("values", "kind", "vector"),
    [
        ({"cr0": 8}, Kind.FAULT, 7),  # TS: the system switches these registers lazily
        ({"cr0": 4}, Kind.FAULT, 7),  # EM
        ({"has_x87": 0}, Kind.LACKS_STATE, 0),
        ({"has_x87": 0, "x87_status": 0x8081, "x87_control": 0x37E}, Kind.FAULT, 16),
    ],
)
def test_who_may_not_use_it(values: dict[str, int], kind: Kind, vector: int) -> None:
    made = machine(**values)
    assert made.execute(FISTTP, Memory()) is kind
    assert made.outcome.vector == vector
    assert made.mnemonic == "FISTTP"


@pytest.mark.parametrize("code", ["ddc9", "dbc9", "dd06", "db2e", "f0dd0e", "d90e"])
def test_its_neighbours_are_not_ours(code: str) -> None:
    assert machine().execute(bytes.fromhex(code), Memory()) is Kind.NOT_OURS
