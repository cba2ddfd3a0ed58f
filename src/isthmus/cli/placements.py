"""The options --translate and --placement of the commands that judge CPUs without any guest."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
PLACEMENTS = ("outside", "inside", "preload")


def translate_options(says: str = "Reckon with the translator.") -> Callable[[F], F]:
    """The options --translate (``says`` is its help) and --placement, which is wish enough."""
    placement = click.option(
        "--placement",
        type=click.Choice(PLACEMENTS),
        help="Where the translator would be: that decides what it covers [default: outside].",
    )
    translate = click.option("--translate", is_flag=True, help=says)
    return lambda command: translate(placement(command))


def covered(
    translate: bool,
    placement: str | None,
    *,
    avx: bool = True,
    vcpus: int = 1,
) -> frozenset[str]:
    """The features that the translator would cover, none if nobody asked for it.

    :param avx: whether the guest was shown AVX.
    :param vcpus: how many vCPUs it has.
    """
    if not translate and placement is None:
        return frozenset()
    from isthmus.translate.table import Placement, translatable

    return translatable(Placement(placement or "outside"), avx=avx, vcpus=vcpus)
