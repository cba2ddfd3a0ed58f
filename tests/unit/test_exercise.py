"""The exercise: whether it has every instruction, and whether CPU and core do them alike."""

import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from isthmus.qualification.exercise.build import build_exercise, source, table
from isthmus.qualification.exercise.encodings import LEFT_OUT, TCG_DIFFERS, encodings
from isthmus.qualification.exercise.rounds import Round, died, differences, rounds
from isthmus.translate.build_core import sources
from isthmus.translate.table import Status, instructions

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
CORE = Path(str(resources.files("isthmus.translate"))) / "core"


def test_has_every_instruction_that_is_translated() -> None:
    ours = {(one.mnemonic.removeprefix("V"), one.group) for one in encodings()}
    lacking = {
        (row.mnemonic, row.feature)
        for row in instructions()
        if row.status is Status.TRANSLATED
        and row.mnemonic not in LEFT_OUT
        and (row.mnemonic.removeprefix("V"), row.feature) not in ours
    }
    assert lacking == set()


def test_what_is_left_out_is_known_and_has_a_reason() -> None:
    known = {row.mnemonic for row in instructions()}
    assert set(LEFT_OUT) <= known | {"XTEST"}
    assert all(LEFT_OUT.values())
    assert all(TCG_DIFFERS.values())


def test_is_the_same_on_every_machine() -> None:
    encodings.cache_clear()
    first = table()
    encodings.cache_clear()
    assert table() == first


needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def with_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exercise with the core in it."""
    folder = tmp_path_factory.mktemp("exercise")
    (folder / "table.inc").write_text(table())
    (folder / "exercise.c").write_bytes(source())
    files = ["exercise.c", *(str(CORE / name) for name in sources())]
    subprocess.run(
        ["gcc", "-O1", "-static", "-no-pie", "-D_GNU_SOURCE", "-DISTHMUS_CORE", f"-I{CORE}",
         "-o", "exercise", *files],
        cwd=folder, check=True,
    )  # fmt: skip
    return folder / "exercise"


def said_of_each(*command: str | Path) -> dict[tuple[str, ...], list[str]]:
    """What the exercise says of each instruction, in every round."""
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found: dict[tuple[str, ...], list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("exercise each "):
            *name, value = line.split()[2:]
            found.setdefault(tuple(name), []).append(value)
    return found


@needs_compiler
def test_this_cpu_and_the_core_do_it_alike(with_core: Path) -> None:
    """Each instruction that this CPU has, natively and by the core, on the same 12 states."""
    native = said_of_each(with_core, "--all", "--each", "12", "0")
    core = said_of_each(with_core, "--all", "--each", "--core", "12", "0")
    assert len(core) == len(encodings())
    assert len(native) > 100
    assert [name for name in native if native[name] != core[name]] == []


@needs_compiler
@pytest.mark.skipif(QEMU is None, reason="no qemu-user here")
def test_qemu_and_the_core_do_it_alike(with_core: Path) -> None:
    """A second witness, for what the lab's emulator does as a CPU would."""
    qemu = said_of_each(str(QEMU), "-cpu", "max", with_core, "--each", "2", "0")
    core = said_of_each(with_core, "--all", "--each", "--core", "2", "0")
    assert len(qemu) > 1000
    assert [name for name in qemu if qemu[name] != core[name]] == []


@needs_compiler
def test_a_second_run_is_equal_and_another_round_is_not(tmp_path: Path) -> None:
    program = build_exercise(tmp_path)

    def said(first: int) -> dict[int, Round]:
        done = subprocess.run(
            [program, "2", "0", str(first)], capture_output=True, text=True, check=True, timeout=60
        )
        return rounds(done.stdout)

    assert said(3) == said(3)
    assert said(3)[3].sums != said(3)[4].sums
    assert differences(said(3), said(3)) == ()


def test_a_word_of_the_kernel_in_a_line_is_passed_over() -> None:
    text = "exercise 0 ran=2 avx=0000[    0.912345] random: crng init done\r\n000000000001 end\r\n"
    assert rounds(text) == {0: Round(ran=2, sums={"avx": "0000000000000001"})}
    assert rounds(text.replace("[    0.912345] random", "random")) == {}


def test_reads_rounds_and_tells_what_differs() -> None:
    text = (
        "[ 1.0] noise\nexercise 0 ran=2 aes=00000000000000ff pni=0000000000000001 end\r\n"
        "exercise 1 ran=2 aes=00000000000000fe pni=0000000000000001 end\n"
        "exercise 2 ran=2 aes=0000\n"
    )
    found = rounds(text)
    assert set(found) == {0, 1}
    assert found[0] == Round(ran=2, sums={"aes": "00000000000000ff", "pni": "0000000000000001"})
    other = {0: found[0], 1: Round(ran=2, sums={**found[1].sums, "pni": "0000000000000009"})}
    assert differences(found, other) == ("round 1: pni",)
    assert differences(found, {0: found[0]}) == ("round 1: not in the other run",)
    assert differences({0: found[0], 2: found[1]}, {**found, 2: found[1]}) == ("round 1: missing",)
    assert died("x\nexercise died signal=4 name=PSHUFB place=9 at=0x1\n") == "signal=4 name=PSHUFB"
    assert died(text) == ""
