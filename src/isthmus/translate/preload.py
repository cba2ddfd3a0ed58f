"""The placement inside one process: which library is preloaded, and which programs take it.

A static program loads no library, and the loader ignores LD_PRELOAD for programs that gain rights
by being executed (set-user-ID, file capabilities; ``ld.so(8)``): both are refused beforehand, as
are programs of another word size or of another C library.
"""

import os
import shutil
import stat
from pathlib import Path

from isthmus.errors import EnvironmentLackError, InputError

REPORT = "ISTHMUS_RUN_REPORT"
_ELF = b"\x7fELF"
_X86_64, _PT_INTERP = 62, 3
_LOADER = b"ld-linux-x86-64.so.2"  # System V ABI, AMD64 supplement; glibc's everywhere
_LOOKED_AT = 64 * 1024
_MOST_INTERPRETERS = 5  # of a script that names a script: the kernel's own limit


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
    loaded = path
    for _ in range(_MOST_INTERPRETERS):
        with loaded.open("rb") as file:
            data = file.read(_LOOKED_AT)
        if data[:2] != b"#!":
            break
        loaded = _interpreter(data, loaded)  # which is what loads the library
    _check_rights(loaded)
    _check_elf(data, loaded)
    return path


def _interpreter(data: bytes, script: Path) -> Path:
    """What the kernel executes a script with: the first word behind ``#!`` (``execve(2)``)."""
    words = data[2:].split(b"\n", 1)[0].split()
    path = Path(os.fsdecode(words[0])) if words else script
    if not path.is_file():
        raise InputError(
            f"{script}: its first line names no interpreter that is here",
            remedy="correct the line that begins with #!",
        )
    return path


def _check_rights(path: Path) -> None:
    """Secure-execution mode (``ld.so(8)``).

    The effective identity becomes another than the real one, or capabilities are gained by one who
    is not root.
    """
    mode = path.stat()
    changes_user = mode.st_mode & stat.S_ISUID and mode.st_uid != os.getuid()
    changes_group = (
        mode.st_mode & stat.S_ISGID and mode.st_mode & stat.S_IXGRP and mode.st_gid != os.getgid()
    )
    gains = os.getuid() != 0 and _has_capabilities(path)
    if changes_user or changes_group or gains:
        kind = "file capabilities" if gains else "set-user-ID" if changes_user else "set-group-ID"
        raise InputError(
            f"{path}: {kind}, so nothing can be preloaded into it",
            remedy="run it as its owner, or level the guest",
        )


def _has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False  # none, or a file system that knows of none


def _check_elf(data: bytes, path: Path) -> None:
    """ELF-64 header and program headers (System V ABI, chapters 4 and 5)."""
    if data[:4] != _ELF or len(data) < 64:
        raise InputError(f"{path}: no ELF program and no script", remedy="name a Linux program")
    if data[4] != 2 or int.from_bytes(data[18:20], "little") != _X86_64:
        raise InputError(f"{path}: no 64-bit x86 program", remedy="only those are translated")
    start = int.from_bytes(data[32:40], "little")
    size, count = (int.from_bytes(data[at : at + 2], "little") for at in (54, 56))
    headers = [data[start + size * n : start + size * n + 40] for n in range(min(count, 256))]
    for header in headers:
        if int.from_bytes(header[:4], "little") == _PT_INTERP:
            offset = int.from_bytes(header[8:16], "little")
            loader = data[offset : offset + 256].split(b"\0", 1)[0]
            if loader.rsplit(b"/", 1)[-1] != _LOADER:
                raise InputError(
                    f"{path}: not made for glibc, which the preloaded library needs",
                    remedy="use a build for glibc, or level the guest",
                )
            return
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
