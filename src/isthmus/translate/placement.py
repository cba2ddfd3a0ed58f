"""Which placement serves a guest: a pure decision from what the guest and the operator offer.

A module in the guest's kernel reaches every register and traps a hundred times cheaper than the
debug stub, so where it is loaded it does all the work, and nothing is armed outside.  Both at once
would be of no use: the breakpoint at the #UD entry would stop the guest before its module sees
anything.
"""

from collections.abc import Collection

from isthmus.translate.table import Placement, translatable
from isthmus.values import Value

WARN_SHARE = 0.05
"""The share of a vCPU above which the cost of translation is warned of, unless another is set."""

_WORDS = {
    Placement.OUTSIDE: "outside the guest, by QEMU's debug stub",
    Placement.INSIDE: "inside the guest, by its kernel's module",
    Placement.PRELOAD: "in the process, by a preloaded library",
}


class Service(Value, frozen=True):
    """Who translates for a guest, and the features that are covered by that; None: nobody."""

    placement: Placement | None
    covered: frozenset[str]


class Translation(Value, frozen=True):
    """What is translated for a guest where it is: the placement, and the features it lacks there.

    ``warn_share`` is the share of a vCPU (0 to 1) above which its cost is warned of, ``level`` the
    command that makes the CPU with which the guest, booted anew, would cost nothing.
    """

    placement: Placement
    features: tuple[str, ...] = ()
    warn_share: float = WARN_SHARE
    level: str = ""

    @property
    def words(self) -> str:
        """One line for the operator."""
        return f"translated {_WORDS[self.placement]}: {', '.join(self.features) or 'nothing yet'}"


def service(*, module: bool, outside: bool, avx: bool, vcpus: int) -> Service:
    """Choose.

    :param module: the guest's kernel has the module loaded.
    :param outside: the operator allows the debug stub, and the destination offers one.
    :param avx: whether the guest was shown AVX.
    :param vcpus: how many vCPUs it has.
    """
    placement = Placement.INSIDE if module else Placement.OUTSIDE if outside else None
    if placement is None:
        return Service(placement=None, covered=frozenset())
    return Service(placement=placement, covered=translatable(placement, avx=avx, vcpus=vcpus))


def arrange(
    by: Service, missing: Collection[str], *, warn_share: float, level: str
) -> Translation | None:
    """What to translate of the features that a guest has and its host lacks; None: nothing.

    :param by: who may serve the guest; a feature that it does not cover is left out here, and
        refused by its rule.
    """
    features = tuple(sorted(by.covered & frozenset(missing)))
    if by.placement is None or not features:
        return None
    return Translation(
        placement=by.placement, features=features, warn_share=warn_share, level=level
    )
