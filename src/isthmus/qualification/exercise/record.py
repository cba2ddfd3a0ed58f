"""The record of crossings: a file of JSON lines that tests append to and the page is made from."""

import os
from pathlib import Path

from isthmus.qualification.exercise.crossing import Crossing
from isthmus.values import Value, from_json, to_json

VARIABLE = "ISTHMUS_CROSSINGS"
"""The environment's name for the file to append to; nothing is recorded without."""


class Programs(Value, frozen=True):
    """Real programs that went on; ``rounds`` printed at home, abroad and at home again."""

    names: tuple[str, ...]
    home: str
    abroad: str
    rounds: tuple[int, int, int]
    translated: dict[str, int]


class Refused(Value, frozen=True):
    """A pair that preflight refuses, and what blocks: the subjects of its findings."""

    home: str
    abroad: str
    subjects: tuple[str, ...]


class Row(Value, frozen=True):
    """One line: exactly one of its parts is given."""

    crossing: Crossing | None = None
    programs: Programs | None = None
    refused: Refused | None = None


def append(row: Row) -> None:
    """Append a line to the file that the environment names, if it names one."""
    if name := os.environ.get(VARIABLE):
        with Path(name).open("ab") as file:
            file.write(to_json(row) + b"\n")


def read(path: Path) -> tuple[Row, ...]:
    """All lines of a file.

    :raises InputError: one is damaged.
    """
    lines = path.read_bytes().splitlines()
    return tuple(from_json(line, Row, where=path.name) for line in lines if line.strip())
