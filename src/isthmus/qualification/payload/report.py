"""The payload's reports, read as hostile text: what a guest writes is never trusted.

A line is ``isthmus1 NUMBER TYPE key=value … crc=CRC32`` (``docs/payload.md``).  Numbers rise by one
over all lines of a guest's life, whatever process it runs in, so a lost, repeated or torn line
shows.
"""

import asyncio
import re
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from isthmus.values import Value

LINE_LIMIT = 1024  # bytes without the newline; the payload stays below (report.h, RECORD_BODY)
STREAM_LIMIT = 256 << 20  # bytes of one guest's life that are read
_READ_SIZE = 1 << 20
_LINE = re.compile(
    rb"isthmus1 (0|[1-9][0-9]{0,18}) ([a-z]{1,16})"
    rb"((?: [a-z0-9_]{1,32}=[!-~]{1,256}){0,64}) crc=([0-9a-f]{8})"
)
_INTEGER = re.compile(r"-?[0-9]{1,20}")


class Record(Value, frozen=True):
    """One report: its number in the stream, its type, its fields."""

    number: int
    kind: str
    fields: Mapping[str, str]

    def integer(self, key: str) -> int:
        """A field as an integer; 0 if it is absent or no number of at most 20 digits."""
        text = self.fields.get(key, "")
        return int(text) if _INTEGER.fullmatch(text) else 0

    def text(self) -> str:
        """The fields as they came."""
        return " ".join(f"{key}={value}" for key, value in self.fields.items())


def parse(line: bytes) -> Record | None:
    """Read one line without its newline; None if it is not a whole report with a right checksum."""
    if len(line) > LINE_LIMIT:
        return None
    match = _LINE.fullmatch(line)
    if match is None or zlib.crc32(line[: match.start(4) - len(" crc=")]) != int(match[4], 16):
        return None
    pairs = [word.split("=", 1) for word in match[3].decode("ascii").split()]
    fields = {key: value for key, value in pairs}  # noqa: C416  (lists are no pairs to mypy)
    if len(fields) != len(pairs):
        return None  # a field twice
    return Record(number=int(match[1]), kind=match[2].decode("ascii"), fields=fields)


class Arrival(Value, frozen=True):
    """When a part of a stream was seen: its end in the stream (bytes), the host's clock (ns)."""

    end: int
    at_ns: int


class Stream(Value, frozen=True):
    """What one process of the guest reported, and when each part of it was seen.

    Times are the host's CLOCK_MONOTONIC in ns, as :func:`time.monotonic_ns` gives it.
    """

    data: bytes
    arrivals: tuple[Arrival, ...] = ()


class Follower:
    """Reads a growing report file bit by bit and remembers when each bit came.

    A stamp is late by at most the time between two polls.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = bytearray()
        self._arrivals: list[Arrival] = []

    def poll(self) -> bytes:
        """Read what is new; empty if nothing is, or the file does not exist yet."""
        room = STREAM_LIMIT - len(self._data)
        try:
            with self.path.open("rb") as file:
                file.seek(len(self._data))
                fresh = file.read(min(_READ_SIZE, room))
        except OSError:
            return b""
        if fresh:
            self._data += fresh
            self._arrivals.append(Arrival(end=len(self._data), at_ns=time.monotonic_ns()))
        return fresh

    async def follow(
        self, *, period: float = 0.002, seen: Callable[[bytes], None] = lambda _: None
    ) -> None:
        """Poll every ``period`` seconds until cancelled; ``seen`` gets each new part."""
        while True:
            while fresh := self.poll():
                seen(fresh)
            await asyncio.sleep(period)

    @property
    def data(self) -> bytes:
        """All that has been read."""
        return bytes(self._data)

    @property
    def stream(self) -> Stream:
        """All that has been read, with its times."""
        return Stream(data=bytes(self._data), arrivals=tuple(self._arrivals))
