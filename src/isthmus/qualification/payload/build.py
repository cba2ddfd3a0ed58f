"""Build the payload: one static program for any x86-64 CPU, with the system's C compiler."""

import subprocess
from importlib import resources
from pathlib import Path

from isthmus.errors import EnvironmentLackError

SOURCES = ("payload.c", "report.c", "machine.c", "instructions.c", "load.c")
HEADERS = ("payload.h",)

# What load_known_answers() computes on every correct CPU: IEEE 754 and integer rules leave no
# choice.  A build with another value reports what it got ("wrong what=arithmetic value=…").
KNOWN_ANSWERS = 0x92310410

FLAGS = (
    "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g1", "-Wall", "-Wextra", "-Werror",
    "-march=x86-64", "-mtune=generic", "-ffp-contract=off", "-fno-strict-aliasing",
    "-static", "-pthread", "-no-pie", "-fdebug-prefix-map=/=",
    f"-DKNOWN_ANSWERS={KNOWN_ANSWERS:#x}u", "-Wl,--build-id=none",
)  # fmt: skip


def sources() -> dict[str, bytes]:
    """The payload's source files by name."""
    folder = resources.files("isthmus.qualification.payload")
    return {name: folder.joinpath(name).read_bytes() for name in (*SOURCES, *HEADERS)}


def build_payload(folder: Path, *, compiler: str = "gcc") -> Path:
    """Compile the payload into ``folder`` and return the program's path.

    :raises EnvironmentLackError: there is no compiler, or no static C library.
    """
    for name, text in sources().items():
        (folder / name).write_bytes(text)
    command = [compiler, *FLAGS, "-o", "payload", *SOURCES, "-lm"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError as error:
        raise EnvironmentLackError(
            f"{compiler}: no such program", remedy="apt-get install gcc libc6-dev"
        ) from error
    if done.returncode != 0:
        raise EnvironmentLackError(
            f"the payload does not compile: {done.stderr.strip()[-400:]}",
            remedy="apt-get install gcc libc6-dev",
        )
    return folder / "payload"
