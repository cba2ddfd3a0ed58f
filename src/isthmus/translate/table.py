"""The table of instructions that the core knows, read from ``data/instructions.json``."""

import enum
from functools import cache
from importlib import resources

from isthmus.cpu.features import FEATURES
from isthmus.values import Value, from_json


class Status(enum.StrEnum):
    """How far an instruction is covered."""

    TRANSLATED = "translated"
    MISSING = "missing"  # so the feature as a whole is not covered
    SILENT = "silent"  # it never faults where it is missing, so nothing can translate it
    HARMLESS = "harmless"  # where it is missing it runs as a NOP, or does no less
    REFUSED = "refused"  # known by name, and done by nobody: the guest gets its #UD


class Placement(enum.StrEnum):
    """Where a missing instruction is done, see DESIGN's terms."""

    OUTSIDE = "outside"  # QEMU's debug stub: no help from the guest, no upper halves of YMM
    INSIDE = "inside"  # a module of the guest's kernel
    PRELOAD = "preload"  # a signal handler in one process


class Instruction(Value, frozen=True, forbid_unknown_fields=True):
    """One instruction: its encodings, the feature it belongs to (canonical name), its source.

    ``ymm``: these encodings write the upper halves of YMM registers, so they need a placement that
    reaches them, and a guest that has AVX.  ``state``: the feature has state of its own that the
    destination drops, so executing the instruction does not cover the feature.  ``atomic``: it has
    to be one step towards other vCPUs (Intel SDM vol. 3A, 9.1.2).  ``oracle`` is what
    the core was compared with.  ``reason``: why it is refused, or harmless.  ``rule``: of a silent
    one, the rule of the catalogue of divergences that protects from it.
    """

    mnemonic: str
    encoding: str
    feature: str
    status: Status
    source: str
    ymm: bool = False
    state: bool = False
    atomic: bool = False
    oracle: str = ""
    reason: str = ""
    rule: str = ""


class _Table(Value, frozen=True):
    schema: int
    instructions: tuple[Instruction, ...]


@cache
def _needs_avx(name: str) -> bool:
    """Whether a feature is AVX, or means nothing without it."""
    feature = FEATURES.get(name)
    return name == "avx" or (feature is not None and any(map(_needs_avx, feature.requires)))


@cache
def instructions() -> tuple[Instruction, ...]:
    """The whole table."""
    data = resources.files("isthmus.translate").joinpath("data/instructions.json").read_bytes()
    return from_json(data, _Table, where="instructions.json").instructions


def translatable(
    placement: Placement = Placement.OUTSIDE, *, avx: bool = True, vcpus: int = 1
) -> frozenset[str]:
    """The features that a placement covers: all their instructions.

    Outside the guest no upper halves of YMM registers are reached, since QEMU's debug stub shows
    none; inside it and in a process they are.  Outside, all vCPUs stand still while one is served;
    elsewhere the others run on between a load and its store, so nothing is atomic.

    :param avx: whether the guest was shown AVX: else it has no encodings that need them.
    :param vcpus: how many run beside each other.
    """
    reaches_ymm = placement is not Placement.OUTSIDE
    alone = placement is Placement.OUTSIDE or vcpus == 1
    by_feature: dict[str, bool] = {}
    for row in instructions():
        if row.ymm and not avx and not _needs_avx(row.feature):
            continue
        done = row.status is Status.TRANSLATED and not row.state
        whole = done and (reaches_ymm or not row.ymm) and (alone or not row.atomic)
        by_feature[row.feature] = by_feature.get(row.feature, True) and whole
    return frozenset(feature for feature, whole in by_feature.items() if whole)
