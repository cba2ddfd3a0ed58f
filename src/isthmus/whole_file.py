"""A file that is written whole or not at all: its reader finds the old one or the new one."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the file, or make it; where ``path`` is a link, the file that it leads to.

    What is no plain file (/dev/null, /dev/stdout, a FIFO) is written to as it is: replacing it
    would put a file in the place of a device.

    :raises OSError: it cannot be written; the old file is as it was, and nothing else is left.
    """
    if not _plain(path):
        with path.open("wb", buffering=0) as device:
            rest = memoryview(data)
            while rest:
                rest = rest[device.write(rest) :]
        return
    target = path.resolve()
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as part:
            part.write(data)
            part.flush()
            os.fsync(part.fileno())
            os.fchmod(part.fileno(), mode)
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return True
