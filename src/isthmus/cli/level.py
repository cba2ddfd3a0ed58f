"""``isthmus level``: the CPU that every host of a pool can honour, and what it costs each host."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from isthmus.baseline.growth import Growth, growth
from isthmus.baseline.level import Baseline
from isthmus.baseline.level import level as level_hosts
from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.recognise import read_cpu
from isthmus.errors import InputError
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, choose_accelerator
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.qemu.render import cpu_argument
from isthmus.values import Value, to_json


class Answer(Value, frozen=True):
    """What ``--json`` prints: the baseline, and QEMU's ``-cpu`` argument for it."""

    baseline: Baseline
    accelerator: str
    cpu: str
    growth: tuple[Growth, ...] = ()


def _names(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


@click.command(no_args_is_help=True)
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option(
    "--keep", multiple=True, callback=_names, metavar="FEATURE,...",
    help="Keep what would go only because makers mix; every host must have it.",
)  # fmt: skip
@click.option(
    "--drop", multiple=True, callback=_names, metavar="FEATURE,...",
    help="Give up these features, too.",
)  # fmt: skip
@click.option(
    "--accel", type=click.Choice([a.value for a in Accelerator]),
    help="Accelerator whose offer counts [default: the best that works here].",
)  # fmt: skip
@click.option("--grow", is_flag=True, help="Tell which hosts to leave out to win which features.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def level(
    hosts: tuple[str, ...],
    keep: tuple[str, ...],
    drop: tuple[str, ...],
    accel: str | None,
    grow: bool,
    as_json: bool,
) -> None:
    """Compute the CPU that every HOST can honour, to boot guests with.

    A HOST is a CPU model of the installed QEMU, or a file of any format that `isthmus cpu show`
    reads (a name with a slash or a dot).

    \b
    Examples:
      isthmus level phenom Penryn
      isthmus level EPYC-Milan Icelake-Server --drop pku
      isthmus level ./amd1.json ./intel1.txt --json
      isthmus level phenom EPYC Icelake-Server --grow
    """
    qemu = find_qemu()
    accelerator = Accelerator(accel) if accel else choose_accelerator(qemu).accelerator
    cpus = asyncio.run(read_cpus(qemu, accelerator))
    pool = [_host(name, cpus) for name in hosts]
    baseline = level_hosts(pool, keep=keep, drop=drop)
    ways = growth(pool, keep=keep, drop=drop) if grow else ()
    cpu = cpu_argument(baseline.model, cpus.named)
    if as_json:
        answer = Answer(baseline=baseline, accelerator=accelerator.value, cpu=cpu, growth=ways)
        click.echo(to_json(answer, indent=2).decode())
    else:
        _print(baseline, cpu)
        for way in ways:
            click.echo(f"without {', '.join(way.without)}: wins {' '.join(way.wins)}")
        if grow and not ways:
            click.echo("no host stands in the way of another feature")


def _host(name: str, cpus: QemuCpus) -> CpuModel:
    if "/" in name or name.endswith((".json", ".txt", ".xml")):
        return read_cpu(Path(name))
    try:
        return cpus.offered(name)
    except InputError as error:
        if not Path(name).exists():
            raise
        raise InputError(error.message, remedy=f"write ./{name} to name the file") from error


def _print(baseline: Baseline, cpu: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    model = baseline.model
    console = Console(highlight=False, soft_wrap=not Console().is_terminal)
    table = Table(title=Text(f"{model.name}: {len(model.features)} features"), title_justify="left")
    table.add_column("host", no_wrap=True)
    table.add_column("gives up", justify="right")
    table.add_column("features", overflow="fold")
    for loss in baseline.losses:
        table.add_row(Text(loss.host), str(len(loss.features)), Text(" ".join(loss.features)))
    console.print(table)
    for reason in baseline.reasons:
        console.print(Text(f"- {reason}"))
    console.print()
    console.print(Text(f"-cpu '{cpu}'"), soft_wrap=True)
