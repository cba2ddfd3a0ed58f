"""The table of instructions that the core knows, read from ``data/instructions.json``."""

import enum
from functools import cache
from importlib import resources

from isthmus.values import Value, from_json


class Status(enum.StrEnum):
    """How far an instruction is covered."""

    TRANSLATED = "translated"
    PARTIAL = "partial"  # others of its feature are not, so the feature as a whole is not
    SILENT = "silent"  # it never faults where it is missing, so nothing can translate it


class Instruction(Value, frozen=True):
    """One instruction: its encodings, the feature it belongs to (canonical name), its source."""

    mnemonic: str
    encoding: str
    feature: str
    status: Status
    source: str


class _Table(Value, frozen=True):
    schema: int
    instructions: tuple[Instruction, ...]


@cache
def instructions() -> tuple[Instruction, ...]:
    """The whole table."""
    data = resources.files("isthmus.translate").joinpath("data/instructions.json").read_bytes()
    return from_json(data, _Table, where="instructions.json").instructions


def translatable() -> frozenset[str]:
    """The features all of whose instructions are translated."""
    by_feature: dict[str, bool] = {}
    for row in instructions():
        whole = row.status is Status.TRANSLATED
        by_feature[row.feature] = by_feature.get(row.feature, True) and whole
    return frozenset(feature for feature, whole in by_feature.items() if whole)
