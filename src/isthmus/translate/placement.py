"""Which placement serves a guest: a pure decision from what the guest and the operator offer.

A module in the guest's kernel reaches every register and traps a hundred times cheaper than the
debug stub, so where it is loaded it does all the work, and nothing is armed outside.  Both at once
would be of no use: the breakpoint at the #UD entry would stop the guest before its module sees
anything.
"""

from isthmus.translate.table import Placement, translatable
from isthmus.values import Value


class Service(Value, frozen=True):
    """Who translates for a guest, and the features that are covered by that; None: nobody."""

    placement: Placement | None
    covered: frozenset[str]


def service(*, module: bool, outside: bool, avx: bool, vcpus: int) -> Service:
    """Choose.

    :param module: the guest's kernel has the module loaded.
    :param outside: the operator allows the debug stub, and the destination offers one.
    :param avx: whether the guest was shown AVX.
    :param vcpus: how many vCPUs it has.
    """
    if module:
        covered = translatable(Placement.INSIDE, avx=avx, vcpus=vcpus)
        return Service(placement=Placement.INSIDE, covered=covered)
    if outside:
        return Service(placement=Placement.OUTSIDE, covered=translatable(avx=avx))
    return Service(placement=None, covered=frozenset())
