"""`isthmus run` with hostile programs: they behave as on a bare CPU that has all instructions.

The programs use an instruction that no CPU of today has (3DNow!'s PFADD; FMA4, TBM), so they can be
run anywhere.  What undefined instructions do on purpose is compared with the same program alone.
"""

import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.translate.preload import environment, program

HERE = Path(__file__).parent
PROCESS = HERE.parents[1] / "src" / "isthmus" / "translate" / "process"
FLAGS = Path("/proc/cpuinfo").read_text().split()
NAME = re.compile(r'\{"([a-z0-9-]+)", ')

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def names(source: str) -> list[str]:
    return [name for name in NAME.findall((HERE / source).read_text()) if name != "one"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("preload_undefined", "preload_hostile"):
        command = ["gcc", "-O1", "-w", "-o", folder / name, HERE / f"{name}.c", "-lpthread"]
        subprocess.run(command, check=True)
    return folder


def outcome(command: list[str | Path], *, translated: bool) -> tuple[int, str]:
    inherited = dict(os.environ)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False,
        env=environment(inherited, None) if translated else inherited,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("what", names("preload_undefined.c"))
def test_undefined_on_purpose_is_as_on_a_bare_cpu(built: Path, what: str) -> None:
    command: list[str | Path] = [built / "preload_undefined", what]
    assert outcome(command, translated=False) == (0, "ok\n")
    assert outcome(command, translated=True) == (0, "ok\n")


@pytest.mark.skipif("3dnow" in FLAGS or "fma4" in FLAGS or "tbm" in FLAGS, reason="an old AMD CPU")
@pytest.mark.parametrize("what", names("preload_hostile.c"))
def test_a_hostile_program_is_served_as_by_a_cpu(built: Path, what: str) -> None:
    if what == "other-exceptions" and "avx" not in FLAGS:
        pytest.skip("FMA4 needs AVX")
    assert outcome([built / "preload_hostile", what], translated=True) == (0, "ok\n")


def test_the_handlers_memory(tmp_path: Path) -> None:
    sources = [HERE / "preload_memory.c", PROCESS / "memory.c"]
    command = ["gcc", "-O1", f"-I{PROCESS}", "-o", tmp_path / "memory", *sources]
    subprocess.run(command, check=True)
    assert outcome([tmp_path / "memory"], translated=False) == (0, "ok\n")


def elf(bits: int, loader: bytes) -> bytes:
    """The head of a program: one program header, for the loader."""
    header = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9) + struct.pack("<HH", 2, 62)
    header += bytes(12) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1)
    header = header.ljust(64, b"\0")
    return header + struct.pack("<IIQ", 3, 4, 120).ljust(56, b"\0") + loader + b"\0"


GLIBC = b"/lib64/ld-linux-x86-64.so.2"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (elf(32, GLIBC), "no 64-bit x86 program"),
        (elf(64, b"/lib/ld-musl-x86_64.so.1"), "not made for glibc"),
        (b"#!/nowhere/at/all -x\n", "no interpreter"),
        (b"#!\n", "no 64-bit|no ELF|interpreter"),
    ],
    ids=["32-bit", "musl", "script-of-nothing", "script-of-none"],
)
def test_what_cannot_take_the_library_is_refused_in_one_line(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "program"
    path.write_bytes(data)
    path.chmod(0o755)
    with pytest.raises(InputError, match=words):
        program(str(path))
    code = "from isthmus.cli.main import main; main()"
    command = [sys.executable, "-c", code, "run", "--", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_script_is_judged_by_its_interpreter(tmp_path: Path) -> None:
    interpreter, script = tmp_path / "interpreter", tmp_path / "script"
    interpreter.write_bytes(elf(64, GLIBC))
    interpreter.chmod(0o755)
    script.write_text(f"#!{interpreter} -x\n")
    script.chmod(0o755)
    assert program(str(script)) == script
    interpreter.write_bytes(elf(32, GLIBC))
    with pytest.raises(InputError, match="64-bit"):
        program(str(script))


@pytest.mark.skipif(os.getuid() != 0, reason="gives a program to another user, so needs root")
@pytest.mark.parametrize(("mode", "word"), [(stat.S_ISUID, "user"), (stat.S_ISGID, "group")])
def test_what_gains_rights_is_refused(tmp_path: Path, mode: int, word: str) -> None:
    path = tmp_path / "program"
    path.write_bytes(elf(64, GLIBC))
    os.chown(path, 1, 1)
    path.chmod(0o755 | mode)
    with pytest.raises(InputError, match=f"set-{word}-ID"):
        program(str(path))
    os.chown(path, os.getuid(), os.getgid())
    path.chmod(0o755 | mode)
    assert program(str(path)) == path
