"""`isthmus demo`: the failure every product has today, and the two cures, with real guests."""

from pathlib import Path

import click

from isthmus.cli import lab


@click.command()
@click.option(
    "--pair",
    default="2008",
    show_default=True,
    metavar="PAIR",
    help="2008 (phenom,Penryn), modern (EPYC,Skylake-Server) or two CPU models A,B.",
)
@click.option(
    "--moves", default=10, show_default=True, type=click.IntRange(1), help="Moves in act two."
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["without", "levelled", "translated"]),
    help="Only this act; may be given more than once.",
)
@click.option("--kernel", metavar="KERNEL", help="A series (6.12), a package or a vmlinuz.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the HTML report here.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and the CPUs' difference.")
@lab.engine_option
@lab.qemu_option
@lab.json_option
def demo(
    pair: str,
    moves: int,
    only: tuple[str, ...],
    kernel: str | None,
    report: Path | None,
    dry_run: bool,
    engine: str,
    qemu: str,
    as_json: bool,
) -> int:
    """Show a guest die without Isthmus, and live with it.

    Act 1 migrates a guest from an AMD to an Intel host with plain QMP.  Act 2 levels it and moves
    it there and back.  Act 3 moves an unlevelled guest with the translator armed.  The exit code is
    0 only if act 1 failed in the guest as expected and the others survived with a correct payload.

    \b
    Examples:
      isthmus demo
      isthmus demo --pair modern --report modern.html
      isthmus demo --pair EPYC-Rome,Cascadelake-Server --json
      isthmus demo --moves 200 --only levelled
    """
    from rich.console import Console

    from isthmus.errors import InputError
    from isthmus.places import cache_folder
    from isthmus.qualification.demo.pairs import pair_of
    from isthmus.qualification.demo.perform import ACTS, Script, perform
    from isthmus.qualification.demo.report import html
    from isthmus.qualification.demo.terminal import TerminalDisplay, summary
    from isthmus.values import to_json

    source, destination = pair_of(pair)
    script = Script(
        source=source,
        destination=destination,
        moves=moves,
        only=only or ACTS,
        qemu=qemu,
        engine=engine,
        kernel=kernel,
    )
    if dry_run:
        _dry_run(script.source, script.destination, qemu, as_json)
        return 0
    if report is not None and not report.absolute().parent.is_dir():
        raise InputError(f"--report {report}: no such folder", remedy="make it first")
    console = Console(stderr=True)
    with TerminalDisplay(console) as display:
        result = lab.run(perform(script, display, cache=cache_folder()))
    if report is not None:
        report.write_text(html(result), encoding="utf-8")
        console.print(f"report: {report}", highlight=False, markup=False)
    if as_json:
        click.echo(to_json(result))
    else:
        Console().print(summary(result))
    return 0 if result.ok else 1


def _dry_run(source: str, destination: str, qemu: str, as_json: bool) -> None:
    from isthmus.baseline.level import level
    from isthmus.hypervisor.qemu.engine import Accelerator
    from isthmus.hypervisor.qemu.render import cpu_argument
    from isthmus.values import to_json

    cpus = lab.run(lab.hosts(qemu, Accelerator.TCG)).cpus
    one, other = cpus.offered(source), cpus.offered(destination)
    baseline = level([one, other])
    facts = {
        "source": source,
        "destination": destination,
        "only_source": sorted(one.features - other.features),
        "only_destination": sorted(other.features - one.features),
        "level": cpu_argument(baseline.model, cpus.named),
    }
    if as_json:
        click.echo(to_json(facts))
        return
    for key, value in facts.items():
        click.echo(f"{key:17} {', '.join(value) if isinstance(value, list) else value}")
