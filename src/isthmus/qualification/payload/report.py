"""The payload's reports, read as hostile text: what a guest writes is never trusted.

A line is ``I1 NUMBER TYPE key=value … ~CRC32`` (docs/payload.md).  Numbers rise by one over all
lines of a guest's life, whatever process it runs in, so a lost, repeated or torn line shows.
"""

import re
import time
import zlib
from pathlib import Path

from isthmus.values import Value

LINE_LIMIT = 1024  # bytes; the payload cuts its own lines there
FIELD_LIMIT = 32
STREAM_LIMIT = 256 << 20
_LINE = re.compile(rb"I1 (\d{1,19}) ([a-z]{1,16}) ([ -}]*)~([0-9a-f]{8})")


class Record(Value, frozen=True):
    """One report: its number in the stream, its type, its fields."""

    number: int
    kind: str
    fields: dict[str, str]

    def integer(self, key: str) -> int:
        """A field as an integer; 0 if it is absent or no number of at most 20 digits."""
        text = self.fields.get(key, "")
        return int(text) if re.fullmatch(r"-?\d{1,20}", text) else 0


def parse(line: bytes) -> Record | None:
    """Read one line without its newline; None if it is not a whole report with a right checksum."""
    if len(line) > LINE_LIMIT:
        return None
    match = _LINE.fullmatch(line)
    if match is None or zlib.crc32(line[: match.start(4) - 1]) != int(match[4], 16):
        return None
    words = match[3].decode("ascii").split()
    fields = dict(word.split("=", 1) for word in words[:FIELD_LIMIT] if "=" in word)
    return Record(number=int(match[1]), kind=match[2].decode("ascii"), fields=fields)


class Follower:
    """Reads a growing report file bit by bit and remembers when each bit came.

    ``chunks`` holds (monotonic time in ns, bytes).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.chunks: list[tuple[int, bytes]] = []
        self._offset = 0

    def poll(self) -> bytes:
        """Read what is new; empty if nothing is, or the file does not exist yet."""
        if self._offset > STREAM_LIMIT:
            return b""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(1 << 20)
        except OSError:
            return b""
        if data:
            self.chunks.append((time.monotonic_ns(), data))
            self._offset += len(data)
        return data

    @property
    def data(self) -> bytes:
        """All that has been read."""
        return b"".join(data for _, data in self.chunks)
