"""The QEMU program of this machine: where it is and which version."""

import re
import shutil
import subprocess
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.values import Value

DEFAULT_NAME = "qemu-system-x86_64"
ANSWER_TIMEOUT_S = 60.0
"""It takes a tenth of a second; on an emulated host that others keep busy, many."""


class QemuBinary(Value, frozen=True):
    """One installed QEMU: its path and its version as (major, minor, micro)."""

    path: Path
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """The version as users write it, for example ``7.2.22``."""
        return ".".join(map(str, self.version))


def find_qemu(name: str = DEFAULT_NAME) -> QemuBinary:
    """Find QEMU on PATH (or at the path ``name``) and ask its version.

    :raises EnvironmentLackError: not found, not executable, or it does not answer like QEMU.
    """
    found = shutil.which(name)
    if found is None:
        raise EnvironmentLackError(
            f"{name}: no such program",
            remedy="install QEMU (Debian, Ubuntu: apt-get install qemu-system-x86)"
            " or name another with --qemu",
        )
    said = _said(Path(found), "--version")
    match = re.match(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        raise EnvironmentLackError(
            f"{found}: does not answer like QEMU", remedy="name a qemu-system-x86_64 program"
        )
    major, minor, micro = (int(part) for part in match.groups())
    return QemuBinary(path=Path(found), version=(major, minor, micro))


def versioned_pc_machine(qemu: QemuBinary) -> str:
    """The newest versioned i440fx machine of this QEMU, for example ``pc-i440fx-7.2``.

    A guest keeps its versioned machine for life: an alias such as ``pc`` means another machine on
    another QEMU, and the stream of a move would not load.

    :raises EnvironmentLackError: this QEMU has no PC machine, or does not answer.
    """
    said = _said(qemu.path, "-machine", "help")
    match = re.search(r"^pc\s.*\(alias of (pc-i440fx-[\d.]+)\)", said, re.MULTILINE)
    if match is None:
        raise EnvironmentLackError(
            f"{qemu.path}: offers no i440fx machine", remedy="install qemu-system-x86"
        )
    return match[1]


def _said(program: Path, *words: str) -> str:
    """What QEMU answers to a question on its command line.

    :raises EnvironmentLackError: it cannot be run, or does not answer in time.
    """
    try:
        done = subprocess.run(
            [program, *words], capture_output=True, timeout=ANSWER_TIMEOUT_S, check=False, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLackError(
            f"{program}: no answer within {ANSWER_TIMEOUT_S:g} s",
            remedy="look whether the machine that it runs on is overloaded",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentLackError(
            f"{program}: cannot be run: {error}", remedy="install qemu-system-x86 again"
        ) from error
    return done.stdout
