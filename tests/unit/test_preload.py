"""`isthmus run`: a real program full of instructions that this CPU lacks, natively."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.translate.preload import environment, library, program

PROBE = Path(__file__).with_name("preload_probe.c")
LACKED = {  # what the probe uses, by the flag that /proc/cpuinfo would show
    "sse4a": "sse4a", "fma4": "fma4", "xop": "xop", "tbm": "tbm", "3dnow": "3dnow", "run": "sse4a",
    "threads": "sse4a", "own-handler": "sse4a", "blocked": "sse4a", "fork": "sse4a",
    "little-stack": "sse4a", "page-fault": "xop",
}  # fmt: skip


def flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).split())


pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None or "avx2" not in flags(), reason="no C compiler, or no AVX2 here"
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe"
    subprocess.run(["gcc", "-O1", "-mavx2", "-o", path, PROBE, "-lpthread"], check=True)
    return path


def ran(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from isthmus.cli.main import main; main()", "run", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("what", LACKED)
def test_a_program_lives_that_would_die(probe: Path, what: str) -> None:
    if LACKED[what] in flags():
        pytest.skip(f"this CPU has {LACKED[what]}")
    alone = subprocess.run([probe, what], capture_output=True, text=True, check=False)
    assert alone.returncode < 0 or "wrong" in alone.stdout
    done = ran("--", probe, what)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_its_sources_are_free_of_warnings() -> None:
    """A line under an if without braces was once taken for a part of it."""
    translate = library().parent
    sources = sorted((translate / "process").glob("*.c"))
    assert sources
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fno-stack-protector"]
    flags += ["-I", str(translate / "core")]
    subprocess.run(["gcc", *flags, "-fsyntax-only", *sources], check=True)


def test_ud2_still_kills(probe: Path) -> None:
    assert ran("--", probe, "ud2").returncode == -signal.SIGILL


@pytest.mark.skipif("sse4a" in flags(), reason="this CPU has SSE4a")
def test_a_run_of_missing_instructions_is_done_in_one_trap(probe: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert ran("--report", report, "--", probe, "run").stdout == "ok\n"
    assert report.read_text() == "traps 1\nEXTRQ 8\n"


def test_what_nobody_translates_is_told_by_name(probe: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert ran("--report", report, "--", probe, "refused").stdout == "ok\n"
    assert report.read_text() == "traps 0\nrefused smx 1\n"


def test_what_cannot_take_the_library_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-static", "-o", tmp_path / "static", source], check=True)
    with pytest.raises(InputError, match="static"):
        program(str(tmp_path / "static"))
    with pytest.raises(InputError, match="no such program"):
        program(str(tmp_path / "absent"))
    text = tmp_path / "text"
    text.write_text("hello\n")
    text.chmod(0o755)
    with pytest.raises(InputError, match="no ELF program"):
        program(str(text))
    assert ran("--", tmp_path / "static").returncode == 2


def test_other_preloads_stay() -> None:
    changed = environment({"LD_PRELOAD": "/a.so"}, Path("/tmp/report"))
    assert changed["LD_PRELOAD"] == f"{library()}:/a.so"


def test_the_library_needs_nothing_of_python() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", library()], capture_output=True, text=True, check=True
    )
    assert "Py" not in listing.stdout


def test_the_handler_copies_by_itself_and_reads_nothing_through_fs() -> None:
    """The C library's copies may hold what is missing; a program may have an FS base of its own."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", library()], capture_output=True, text=True, check=True
    )
    used = {line.split()[-1].split("@")[0] for line in listing.stdout.splitlines()}
    assert not used & {"memcpy", "memset", "memmove", "memcmp", "__memcpy_chk", "__stack_chk_fail"}
