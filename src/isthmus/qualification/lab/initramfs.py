"""Write an initramfs: a cpio archive in the "newc" format, made without root.

Format: Linux Documentation/driver-api/early-userspace/buffer-format.rst.  Device nodes are not
needed: the kernel's devtmpfs makes them.
"""

import stat
from collections.abc import Iterable

from isthmus.values import Value


class Entry(Value, frozen=True):
    """A file, folder or symbolic link: its path in the archive, mode bits and content."""

    path: str
    mode: int
    data: bytes = b""


def folder(path: str) -> Entry:
    """A folder that everyone can read."""
    return Entry(path=path, mode=stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(path=path, mode=stat.S_IFREG | (0o755 if executable else 0o644), data=data)


def link(path: str, target: str) -> Entry:
    """A symbolic link to ``target``."""
    return Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode())


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive's bytes; the same entries give the same bytes (no times, no owners)."""
    parts = []
    for number, entry in enumerate([*entries, Entry(path="TRAILER!!!", mode=0)], start=1):
        name = entry.path.encode() + b"\0"
        fields = (
            number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0,
        )  # fmt: skip
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        parts.append(_padded(header + name))
        parts.append(_padded(entry.data))
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
