"""Which features a placement covers, and in words why it does not cover the others.

Pure, over the table of instructions; ``isthmus translate coverage`` prints it.
"""

from typing import Literal

from isthmus.cpu.features import find
from isthmus.errors import InputError
from isthmus.translate.table import Instruction, Placement, Status, instructions, translatable
from isthmus.values import Value

Covered = Literal["yes", "without AVX", "no"]


class FeatureCoverage(Value, frozen=True):
    """One feature: whether a placement covers it, why not (empty if it does), its instructions."""

    feature: str
    placement: Placement
    covered: Covered
    why: str
    instructions: tuple[Instruction, ...]


def features(placement: Placement, only: str | None = None) -> tuple[FeatureCoverage, ...]:
    """All features of the table, by name, or the one called ``only`` in any known spelling.

    :raises InputError: no such feature, or none that instructions belong to.
    """
    by_feature: dict[str, list[Instruction]] = {}
    for row in instructions():
        by_feature.setdefault(row.feature, []).append(row)
    if only is not None and only not in by_feature:
        name = find(only).name
        if name not in by_feature:
            raise InputError(
                f"{only}: no instructions belong to that feature",
                remedy="`isthmus translate coverage` lists the features that have some",
            )
        only = name
    return tuple(
        _feature(name, placement, by_feature[name])
        for name in sorted(by_feature)
        if only in {None, name}
    )


def _feature(name: str, placement: Placement, rows: list[Instruction]) -> FeatureCoverage:
    covered: Covered = "no"
    if name in translatable(placement):
        covered = "yes"
    elif name in translatable(placement, avx=False):
        covered = "without AVX"
    return FeatureCoverage(
        feature=name,
        placement=placement,
        covered=covered,
        why="" if covered == "yes" else _why(placement, rows),
        instructions=tuple(rows),
    )


def _why(placement: Placement, rows: list[Instruction]) -> str:
    """The first reason that holds, the gravest first."""
    refused = [row for row in rows if row.status is Status.REFUSED]
    if refused:
        return refused[0].reason
    for status, words in (
        (Status.SILENT, "runs as another instruction where it is missing and never faults"),
        (Status.MISSING, "not every instruction is executed"),
    ):
        named = [row.mnemonic for row in rows if row.status is status]
        if named:
            return f"{words}: {', '.join(dict.fromkeys(named))}"
    if any(row.state for row in rows):
        return "has state of its own, which the destination drops"
    if placement is Placement.OUTSIDE and any(row.ymm for row in rows):
        return "needs the upper halves of YMM, which QEMU's debug stub does not show"
    return "runs as a NOP where it is missing, or does no less"
