"""The terminal that tables are drawn on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 40
"""Columns; a table for fewer loses what stands in it, one that the terminal wraps does not."""


def screen() -> "Console":
    """The standard output: lines are wrapped only where somebody looks at them."""
    from rich.console import Console

    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal
    console.width = max(console.width, NARROWEST)
    return console
