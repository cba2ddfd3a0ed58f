"""``isthmus compare``: what differs between CPUs, by what it means to a guest."""

from pathlib import Path

import click

from isthmus.cli.hosts import read_hosts
from isthmus.cli.placements import covered, translate_options
from isthmus.cli.screen import screen
from isthmus.divergence.comparison import Comparison, Direction, compare, link
from isthmus.divergence.finding import Severity
from isthmus.errors import InputError
from isthmus.values import to_json

_MANY = 3
"""From so many CPUs on, the terminal shows a matrix rather than every finding."""

_COLOURS = {
    None: "green", Severity.NOTE: "green", Severity.TRANSLATE: "blue", Severity.WARN: "yellow",
    Severity.REFUSE: "red",
}  # fmt: skip


@click.command("compare", no_args_is_help=True)
@click.argument("cpus", metavar="CPU CPU...", nargs=-1, required=True)
@translate_options()
@click.option(
    "--hypervisor", type=click.Choice(["kvm", "tcg", "xen", "hyper-v", "vmware"]),
    help="What runs guests on them; left out, the most cautious answer.",
)  # fmt: skip
@click.option(
    "--html", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write a heat map with every finding as one HTML page.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    cpus: tuple[str, ...],
    translate: bool,
    placement: str | None,
    hypervisor: str | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Show what differs between CPUs, grouped by what it means to a guest.

    A CPU is a model of the installed QEMU, or a file of any format that `isthmus cpu show` reads.
    Every line names the rule it comes from; docs/divergences.md tells its source and remedy.

    \b
    Examples:
      isthmus compare EPYC-Milan Icelake-Server
      isthmus compare ./old-host.txt ./new-host.xml --hypervisor kvm
      isthmus compare hosts/*.txt --html differences.html
    """
    if len(cpus) < 2:
        raise click.UsageError("name at least two CPUs")
    hosts = read_hosts(cpus)
    names = [host.name for host in hosts]
    hosts = tuple(
        host.replace(name=cpu if names.count(host.name) > 1 else host.name)
        for host, cpu in zip(hosts, cpus, strict=True)
    )
    found = compare(hosts, translatable=covered(translate, placement), hypervisor=hypervisor or "")
    if file is not None:
        _write(file, found)
    if as_json:
        click.echo(to_json(found, indent=2).decode())
    elif file is None:
        _show(found)


def _write(file: Path, found: Comparison) -> None:
    from isthmus.cli.heatmap import page

    try:
        file.write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror or error}", remedy="name a place that can be written"
        ) from error
    click.echo(f"wrote {file}", err=True)


def _show(found: Comparison) -> None:
    console = screen()
    if len(found.hosts) >= _MANY:
        console.print(_matrix(found))
        click.echo("name two of them for every finding, or take --html FILE")
        return
    for way in found.directions:
        for line in _told(way):
            console.print(line)


def _told(way: Direction) -> list[object]:
    from rich.text import Text

    worst = way.worst.value if way.worst else "nothing"
    lines: list[object] = [Text(f"{way.source} to {way.destination}: {worst}", style="bold")]
    for meaning, findings in way.groups.items():
        lines.append(Text(f"  {meaning.value}", style="bold"))
        for finding in findings:
            head = f"    {finding.severity.value:9} "
            text = f"{finding.subject}: {finding.notice} [{finding.rule}]"
            style = f"{_COLOURS[finding.severity]} link {link(finding.rule)}"
            lines.append(Text(head, style=_COLOURS[finding.severity]) + Text(text, style=style))
    return lines


def _matrix(found: Comparison) -> object:
    from rich.table import Table
    from rich.text import Text

    ways = {(way.source, way.destination): way for way in found.directions}
    table = Table(title="guests booted on (rows) moving to (columns)", title_justify="left")
    table.add_column("")
    for host in found.hosts:
        table.add_column(Text(host), overflow="fold")
    for source in found.hosts:
        cells = []
        for host in found.hosts:
            way = ways.get((source, host))
            if way is None:
                cells.append(Text("-"))
                continue
            word = way.worst.value if way.worst else "same"
            count = f" {way.count(way.worst)}" if way.worst else ""
            cells.append(Text(f"{word}{count}", style=_COLOURS[way.worst]))
        table.add_row(Text(source), *cells)
    return table
