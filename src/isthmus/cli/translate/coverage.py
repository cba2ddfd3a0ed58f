"""`isthmus translate coverage`: which instructions a placement executes, and why not the rest."""

from collections import Counter
from typing import TYPE_CHECKING

import click

from isthmus.cli import lab
from isthmus.cli.placements import PLACEMENTS

if TYPE_CHECKING:
    from isthmus.translate.coverage import FeatureCoverage


@click.command()
@click.option("--feature", metavar="NAME", help="One feature, instruction by instruction.")
@click.option(
    "--placement", type=click.Choice(PLACEMENTS), default="outside", show_default=True,
    help="Where the instructions are executed.",
)  # fmt: skip
@lab.json_option
def coverage(feature: str | None, placement: str, as_json: bool) -> None:
    """Tell which features a placement covers: all their instructions, and why others are not.

    A feature counts as covered "without AVX" where only guests that were not shown AVX are served.
    Sources and who was compared with: docs/coverage.md.

    \b
    Examples:
      isthmus translate coverage
      isthmus translate coverage --placement inside
      isthmus translate coverage --feature avx2 --json
    """
    from isthmus.translate.coverage import features
    from isthmus.translate.table import Placement
    from isthmus.values import to_json

    found = features(Placement(placement), feature)
    if as_json:
        click.echo(to_json(found[0] if feature else found, indent=2))
    elif feature:
        _one(found[0])
    else:
        for each in found:
            counts = Counter(row.status.value for row in each.instructions)
            words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
            why = f"; {each.why}" if each.why else ""
            click.echo(f"{each.feature:16} {each.covered:12} {words}{why}")


def _one(each: "FeatureCoverage") -> None:
    click.echo(f"{each.feature}: {each.covered}{'; ' + each.why if each.why else ''}")
    for row in each.instructions:
        why = row.reason or (f"rule {row.rule}" if row.rule else row.oracle)
        click.echo(f"  {row.mnemonic:16} {row.status.value:10} {row.encoding}  {why}")
