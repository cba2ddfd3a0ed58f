"""The placement inside one process: which library is preloaded, and which programs take it.

A static program loads no library, and the loader ignores LD_PRELOAD for programs that gain rights
by being executed (set-user-ID, file capabilities; ``ld.so(8)``): both are refused beforehand.
"""

import os
import shutil
import stat
from pathlib import Path

from isthmus.errors import EnvironmentLackError, InputError

REPORT = "ISTHMUS_RUN_REPORT"
_ELF = b"\x7fELF"
_X86_64, _PT_INTERP = 62, 3
_MAX_HEADERS = 256


def library() -> Path:
    """The library to preload.

    :raises EnvironmentLackError: it is not built.
    """
    found = sorted(Path(__file__).parent.glob("_preload*.so"))
    if not found:
        raise EnvironmentLackError(
            "the preload library is not built", remedy="run script/setup, or pip install ."
        )
    return found[0]


def program(name: str) -> Path:
    """The program of that name or path, if the library can be preloaded into it.

    :raises InputError: no such program, or one that would run without the library.
    """
    found = shutil.which(name)
    if found is None:
        raise InputError(f"{name}: no such program", remedy="name a program on PATH, or its path")
    path = Path(found)
    mode = path.stat()
    if mode.st_mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() not in {0, mode.st_uid}:
        raise InputError(
            f"{path}: set-user-ID, so nothing can be preloaded into it",
            remedy="run it as its owner, or level the guest",
        )
    with path.open("rb") as file:
        data = file.read(64 + 56 * _MAX_HEADERS)
    if data[:2] == b"#!":
        return path  # its interpreter is what loads the library
    _check_elf(data, path)
    return path


def _check_elf(data: bytes, path: Path) -> None:
    """ELF-64 header and program headers (System V ABI, chapters 4 and 5)."""
    if data[:4] != _ELF or len(data) < 64:
        raise InputError(f"{path}: no ELF program and no script", remedy="name a Linux program")
    if data[4] != 2 or int.from_bytes(data[18:20], "little") != _X86_64:
        raise InputError(f"{path}: no 64-bit x86 program", remedy="only those are translated")
    start = int.from_bytes(data[32:40], "little")
    size, count = (int.from_bytes(data[at : at + 2], "little") for at in (54, 56))
    kinds = (
        int.from_bytes(data[start + size * number : start + size * number + 4], "little")
        for number in range(min(count, _MAX_HEADERS))
    )
    if _PT_INTERP not in kinds:
        raise InputError(
            f"{path}: static, so nothing can be preloaded into it",
            remedy="use a dynamically linked build, or level the guest",
        )


def environment(inherited: dict[str, str], report: Path | None) -> dict[str, str]:
    """The environment to execute a program in."""
    before = inherited.get("LD_PRELOAD", "")
    changed = dict(inherited)
    changed["LD_PRELOAD"] = f"{library()}:{before}" if before else str(library())
    if report is not None:
        changed[REPORT] = str(report.absolute())
    return changed
