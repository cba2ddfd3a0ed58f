"""What a filter has done to a stream: one JSON document a line, on the disk before the END goes on.

First come the rewritten fields (:class:`~isthmus.translate.xen.rules.Change`), each as it was met;
the last line is the :class:`Summary`.  A file without a summary is of a stream that was refused or
cut: its guest was never given to the destination.
"""

import os
from pathlib import Path

import msgspec

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.translate.xen.rules import Change
from isthmus.values import Value, from_json, read_bytes, to_json

SCHEMA_VERSION = 1


class Summary(Value, frozen=True):
    """The whole stream: the kind of guest, its Xen, its records by name, pages of memory, bytes."""

    guest: str
    xen: str
    to: str
    records: dict[str, int]
    pages: int
    bytes: int
    changes: int
    schema: int = SCHEMA_VERSION


class Report:
    """A report under way; without a path it is only kept in memory."""

    def __init__(self, path: Path | None) -> None:
        self.changes: list[Change] = []
        self._path = path
        self._descriptor = -1
        if path is not None:
            try:
                self._descriptor = os.open(
                    path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
                )
            except OSError as error:
                raise InputError(
                    f"{path}: {error.strerror or error}", remedy="name a file that can be written"
                ) from error

    def add(self, change: Change) -> None:
        """Keep one change, and write it."""
        self.changes.append(change)
        self._write(to_json(change) + b"\n")

    def seal(self, summary: Summary) -> None:
        """Write the last line and bring all to the disk.

        :raises EnvironmentLackError: it cannot be written; the END must not go on.
        """
        self._write(to_json(summary) + b"\n")
        if self._descriptor >= 0:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise self._lack(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: bytes) -> None:
        try:
            while self._descriptor >= 0 and line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise self._lack(error) from error

    def _lack(self, error: OSError) -> EnvironmentLackError:
        return EnvironmentLackError(
            f"{self._path}: {error.strerror or error}",
            remedy="nothing more is sent on, so the source resumes the guest; make room there",
        )


def read_report(path: Path) -> tuple[tuple[Change, ...], Summary | None]:
    """The changes and the summary of a report; None where the stream did not come to its end.

    :raises InputError: unreadable, or not such a report.
    """
    changes: list[Change] = []
    summary: Summary | None = None
    for line in read_bytes(path).splitlines():
        if summary is not None:
            raise InputError(f"{path}: goes on behind its summary", remedy="name the right file")
        try:
            changes.append(msgspec.json.decode(line, type=Change))
        except msgspec.DecodeError:
            summary = from_json(line, Summary, where=str(path))
    return tuple(changes), summary
