"""The table of instructions that the core knows, read from ``data/instructions.json``."""

import enum
from functools import cache
from importlib import resources

from isthmus.values import Value, from_json


class Status(enum.StrEnum):
    """How far an instruction is covered."""

    TRANSLATED = "translated"
    MISSING = "missing"  # so the feature as a whole is not covered
    SILENT = "silent"  # it never faults where it is missing, so nothing can translate it


class Instruction(Value, frozen=True, forbid_unknown_fields=True):
    """One instruction: its encodings, the feature it belongs to (canonical name), its source.

    ``ymm``: these encodings write the upper halves of YMM registers, so they need a placement that
    reaches them, and a guest that has AVX.  ``oracle`` is what the core was compared with.
    """

    mnemonic: str
    encoding: str
    feature: str
    status: Status
    source: str
    ymm: bool = False
    oracle: str = ""


class _Table(Value, frozen=True):
    schema: int
    instructions: tuple[Instruction, ...]


# Features that mean nothing without AVX.
_OF_AVX = frozenset(
    {"avx2", "avx-vnni", "f16c", "fma", "fma4", "vaes", "vpclmulqdq", "xop"}
)  # fmt: skip


@cache
def instructions() -> tuple[Instruction, ...]:
    """The whole table."""
    data = resources.files("isthmus.translate").joinpath("data/instructions.json").read_bytes()
    return from_json(data, _Table, where="instructions.json").instructions


def translatable(*, avx: bool = True) -> frozenset[str]:
    """The features that the placement outside the guest covers: all their instructions.

    It reaches no upper halves of YMM registers, since QEMU's debug stub shows none.

    :param avx: whether the guest was shown AVX: else it has no encodings that need them.
    """
    by_feature: dict[str, bool] = {}
    for row in instructions():
        if row.ymm and not avx and row.feature not in _OF_AVX:
            continue
        whole = row.status is Status.TRANSLATED and not row.ymm
        by_feature[row.feature] = by_feature.get(row.feature, True) and whole
    return frozenset(feature for feature, whole in by_feature.items() if whole)
