"""Build the payload: one static program for any x86-64 CPU, with the system's C compiler."""

import re
import shutil
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.qualification.store import Made, key_of, obtain

FLAGS = (
    "-std=c11", "-D_GNU_SOURCE", "-O2", "-march=x86-64", "-mtune=generic", "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wstrict-prototypes",
    "-Wmissing-prototypes", "-static", "-no-pie", "-pthread", "-Wl,--build-id=none", "-s",
)  # fmt: skip
"""Baseline x86-64, so that every instruction beyond it is one that the payload chose to test."""

SHARED = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared")
"""For a library that is preloaded."""

COMPILE_TIMEOUT_S = 180
_REMEDY = "apt-get install gcc libc6-dev"


def sources() -> dict[str, bytes]:
    """The payload's source files by name."""
    folder = resources.files("isthmus.qualification.payload")
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith((".c", ".h"))
    }


def build_payload(
    cache: Path, *, compiler: str = "gcc", progress: Callable[[str], None] = lambda _: None
) -> Path:
    """Compile the payload, or take it from ``cache``; returns the program's path.

    :raises EnvironmentLackError: there is no compiler, or no static C library.
    """
    files = sources()
    parts = [part for name, text in files.items() for part in (name.encode(), text)]
    key = key_of(" ".join(FLAGS), compiler_version(compiler), *parts)

    def make(scratch: Path) -> Made:
        progress("compiling the payload")
        return Made(files={"payload": compiled(files, scratch, compiler)})

    program = obtain(cache, "payloads", key, make).folder / "payload"
    program.chmod(0o755)
    return program


def compiled(
    files: dict[str, bytes], scratch: Path, compiler: str, flags: tuple[str, ...] = FLAGS
) -> bytes:
    """One program (static, unless ``flags`` differ) of these sources, compiled in ``scratch``.

    :raises EnvironmentLackError: it does not compile here.
    """
    for name, text in files.items():
        (scratch / name).write_bytes(text)
    units = [name for name in files if name.endswith((".c", ".S"))]
    done = _run([compiler, *flags, "-o", "program", *units], scratch)
    if done.returncode != 0:
        raise EnvironmentLackError(
            f"{', '.join(units)}: does not compile: {done.stderr.strip()[-400:]}", remedy=_REMEDY
        )
    return (scratch / "program").read_bytes()


def compiler_version(compiler: str) -> str:
    """The first line of what the compiler says of itself.

    :raises EnvironmentLackError: there is no such program.
    """
    if shutil.which(compiler) is None:
        raise EnvironmentLackError(f"{compiler}: no such program", remedy=_REMEDY)
    return _run([compiler, "--version"], Path("/")).stdout.partition("\n")[0]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=folder, capture_output=True, text=True, errors="replace", check=False,
            timeout=COMPILE_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentLackError(
            f"{command[0]}: cannot be run: {error}", remedy=_REMEDY
        ) from error


def instruction_groups() -> frozenset[str]:
    """The features whose instructions the payload can test, read from its own table."""
    table = sources()["instructions.c"].decode()
    return frozenset(
        re.findall(r'^    \{"\w+", "([\w.-]+)", 0?x?[0-9a-f]+u?, E', table, re.MULTILINE)
    )
