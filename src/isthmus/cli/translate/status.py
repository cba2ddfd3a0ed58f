"""`isthmus translate status`: what is translated for guests, how often, where, at what cost."""

import asyncio
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isthmus.cli import lab
from isthmus.cli.screen import screen
from isthmus.errors import InputError

if TYPE_CHECKING:
    from isthmus.migration.arming import Report
    from isthmus.translate.outside import TranslatorStatus
    from isthmus.translate.symbols import Symbols

_BUSIEST = 10
"""So many sites, and processes, the terminal shows; --json has all that are counted."""


@click.command()
@click.argument("guest", required=False)
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--every", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="S",
    help="With --watch: how often.",
)  # fmt: skip
@click.option(
    "--symbols", "file", type=click.Path(path_type=Path), metavar="FILE",
    help="The guest kernel's System.map, or a copy of its /proc/kallsyms.",
)  # fmt: skip
@lab.json_option
def status(guest: str | None, watch: bool, every: float, file: Path | None, as_json: bool) -> None:
    """Tell what is translated for GUEST, or for every guest: counts, rate and cost.

    Sites are the addresses of the instructions that trapped, with symbols of the guest's kernel if
    they are at hand; processes are told by their page tables (CR3).

    \b
    Examples:
      isthmus translate status
      isthmus translate status old --watch
      isthmus translate status old --symbols kallsyms.txt
      isthmus translate status old --json
    """
    if file is not None and guest is None:
        raise InputError("--symbols needs a GUEST: a file is of one kernel", remedy="name it")
    if math.isnan(every):  # it passes every range
        raise InputError("--every nan: not a number", remedy="give seconds, such as 2")
    if not watch:
        reports, problems = lab.run(_reports(guest))
        _show(reports, file, as_json, one=guest is not None)
        lab.tell_damaged(problems)
        return
    while True:
        reports, _ = lab.run(_reports(guest))
        if not as_json and sys.stdout.isatty():
            click.echo("\x1b[H\x1b[2J", nl=False)
        _show(reports, file, as_json, one=guest is not None)
        time.sleep(every)


async def _reports(guest: str | None) -> "tuple[list[Report], dict[str, str]]":
    from isthmus.migration.arming import look

    store = lab.store()
    names, problems = [guest] if guest else [], dict[str, str]()
    if guest is None:
        guests, problems = store.guests()
        names = [each.name for each in guests]
    return list(await asyncio.gather(*(look(store, name) for name in names))), problems


def _show(reports: "list[Report]", file: Path | None, as_json: bool, *, one: bool) -> None:
    from isthmus.values import to_json

    if as_json:
        click.echo(to_json(reports[0] if one else reports))
        return
    if not reports:
        click.echo("no guests here", err=True)
        return
    _table(reports)
    for report in reports:
        for text in (report.problem, report.warning):
            if text:
                click.echo(f"{report.guest}: {text}", err=True)
    if one and reports[0].translation is not None:
        click.echo(reports[0].translation.words)
    if one and reports[0].status is not None:
        _details(reports[0].status, _symbols(file, reports[0].status))


def _symbols(file: Path | None, status: "TranslatorStatus") -> "Symbols | None":
    from isthmus.translate.symbols import read_symbols

    if file is None:
        return None
    if not status.entry:
        raise InputError("the translator is not armed, so the kernel's place is not known")
    return read_symbols(file, int(status.entry, 16))


def _table(reports: "list[Report]") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("guest", "host", "placement"):
        table.add_column(heading, no_wrap=True)
    for heading in ("translated", "per second", "of a vCPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    for report in reports:
        placement, found = report.translation and report.translation.placement, report.status
        cells = [report.guest, report.host, placement or "none"]
        if found is not None:
            cells.append(str(sum(found.translated.values())))
            cells += [f"{found.rate_hz:.0f}", f"{found.busy_share:.1%}"]
        table.add_row(*map(Text, cells))
    screen().print(table)
    if any(r.translation and r.translation.placement == "inside" for r in reports):
        click.echo("inside: the counters are in the guest, /sys/kernel/debug/isthmus/counters")


def _details(status: "TranslatorStatus", symbols: "Symbols | None") -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.since))
    click.echo(f"since {since}: {status.traps} traps, {status.passed} #UDs of the guest's own")
    _counts("instructions", status.translated)
    _counts("refused by family", status.refused)
    _counts("not reachable from outside (YMM)", status.lacking)
    named = {
        f"{site} {symbols.name(int(site, 16)) if symbols else ''}".rstrip(): count
        for site, count in status.sites.items()
    }
    _counts("sites", named, _BUSIEST)
    _counts("processes (CR3)", status.processes, _BUSIEST)
    click.echo(
        f"faulted {status.faulted}, spurious stops {status.spurious},"
        f" {status.us_per_instruction:.0f} µs an instruction,"
        f" and {status.stop_us:.0f} µs of QEMU's own for each trap"
    )


def _counts(title: str, counts: Mapping[str, int], most: int | None = None) -> None:
    if not counts:
        return
    click.echo(f"{title}:")
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    for name, count in ordered[:most]:
        click.echo(f"  {count:12} {name}")
    if most is not None and len(ordered) > most:
        click.echo(f"  and {len(ordered) - most} more (--json)")
