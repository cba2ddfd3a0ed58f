"""``isthmus level``: the CPU that every host of a pool can honour, and what it costs each host."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from isthmus.baseline.growth import Growth, growth
from isthmus.baseline.level import Baseline
from isthmus.baseline.level import level as level_hosts
from isthmus.baseline.pool import Pool, found
from isthmus.cli.applying import Applying, applied, applying_options
from isthmus.cli.hosts import HERE, at_uri, is_file, is_uri, read_hosts
from isthmus.cli.placements import covered, translate_options
from isthmus.cli.pools import joined, raised_by, stored
from isthmus.cli.screen import screen
from isthmus.cpu.model import CpuModel
from isthmus.cpu.probe import this_machine
from isthmus.cpu.readers.recognise import read_host
from isthmus.errors import EnvironmentLackError, InputError
from isthmus.hypervisor.platforms import KVM, RENDERERS, render
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, choose_accelerator
from isthmus.hypervisor.qemu.levels import render as render_qemu
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.rendering import Rendering, under_kvm
from isthmus.values import Value, to_json

REFUSED = 3


class Answer(Value, frozen=True):
    """What ``--json`` prints: the baseline, its rendering, and QEMU's ``-cpu`` argument for it."""

    baseline: Baseline
    accelerator: str
    cpu: str
    rendering: Rendering
    growth: tuple[Growth, ...] = ()


def _names(
    _context: click.Context, _option: click.Parameter, values: Sequence[str]
) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


@click.command(no_args_is_help=True)
@click.argument("hosts", metavar="HOST...", nargs=-1)
@click.option(
    "--for", "platform", type=click.Choice([*RENDERERS]), default="qemu", show_default=True,
    help="Write the level in the words of this platform.",
)  # fmt: skip
@click.option(
    "--keep", multiple=True, callback=_names, metavar="FEATURE,...",
    help="Keep what would go only because makers mix; every host must have it.",
)  # fmt: skip
@click.option(
    "--drop", multiple=True, callback=_names, metavar="FEATURE,...",
    help="Give up these features, too.",
)  # fmt: skip
@translate_options("Keep what the translator can do for the hosts that lack it.")
@click.option(
    "--accel", type=click.Choice([a.value for a in Accelerator]),
    help="Accelerator whose offer counts [default: the best that works here].",
)  # fmt: skip
@click.option("--grow", is_flag=True, help="Tell which hosts to leave out to win which features.")
@click.option(
    "--pool", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The pool's file: written with HOST..., else read.",
)  # fmt: skip
@click.option(
    "--join", metavar="HOST", help="With --pool: take the host into the pool, unless it lowers it."
)
@click.option(
    "--raise", "raising", is_flag=True,
    help="With --pool: tell what the pool wins, and which guests to power-cycle for it.",
)  # fmt: skip
@click.option(
    "--leave", multiple=True, callback=_names, metavar="HOST,...",
    help="With --raise: these hosts leave the pool.",
)  # fmt: skip
@click.option(
    "--guest", "guests", multiple=True, metavar="NAME=VERSION",
    help="With --raise: a guest, and the version of the level that it was booted with.",
)  # fmt: skip
@applying_options
@click.option("--dry-run", is_flag=True, help="Write nothing: no pool's file, no domain.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def level(
    hosts: tuple[str, ...],
    platform: str,
    keep: tuple[str, ...],
    drop: tuple[str, ...],
    translate: bool,
    placement: str | None,
    accel: str | None,
    grow: bool,
    file: Path | None,
    join: str | None,
    raising: bool,
    leave: tuple[str, ...],
    guests: tuple[str, ...],
    applying: Applying | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Compute the CPU that every HOST can honour, to boot guests with.

    A HOST is a CPU model of the installed QEMU, or a file of any format that `isthmus cpu show`
    reads (a name with a slash or a dot), or `here` for this machine, or a libvirt URI, or the
    address of a Xen host (what that gives PV guests; `#pvh` behind it: PVH and HVM guests).  Exit
    code 3: the platform cannot honour the level, or the host may not join the pool.

    --apply writes the level into libvirt's domains, of a connection or of files: their <cpu> and
    what the level needs, nothing else. It counts from the next start of each; the former XML is
    kept, with the command that puts it back.

    \b
    Examples:
      isthmus level phenom Penryn
      isthmus level EPYC-Milan Icelake-Server --drop pku --for libvirt
      isthmus level ./amd1.json ./intel1.txt --json
      isthmus level phenom EPYC Icelake-Server --grow
      isthmus level xen+ssh://root@amd1 xen+ssh://root@intel1 --for xen
      isthmus level hosts/*.txt --pool blue.json
      isthmus level --pool blue.json --join ./new-host.txt
      isthmus level --pool blue.json --raise --leave old-host --guest web1=1
      isthmus level --pool blue.json --apply --connect qemu:///system --domain web --dry-run
      isthmus level amd.xml intel.xml --apply --domain ./web.xml
    """
    _check_usage(hosts, file, join, raising, leave, guests)
    if applying is not None:
        if platform not in {"qemu", "libvirt"} or join is not None or raising:
            raise click.UsageError("--apply is for libvirt's domains, and a step of its own")
        platform = "libvirt"
    if file is not None and join is not None:
        return joined(file, _read((join,), accel)[0][0], dry_run=dry_run, as_json=as_json)
    if file is not None and raising:
        return raised_by(file, leave, guests, dry_run=dry_run, as_json=as_json)
    if hosts:
        members, cpus = _read(hosts, accel)
        keeps = covered(translate, placement)
        if file is not None:
            pool = found(file.stem, members, keep=keep, drop=drop, translate=keeps)
            stored(file, pool, dry_run=dry_run, new=True)
        baseline = level_hosts(members, keep=keep, drop=drop, translate=keeps)
    else:
        pool = _stored_pool(file)
        members, cpus, baseline = pool.hosts, None, pool.level
    ways = growth(members, keep=keep, drop=drop) if grow else ()
    shown = baseline
    if platform in KVM and any(_silicon(host) for host in members):
        shown = under_kvm(baseline)
    named = cpus.named if cpus else None
    name = file.stem if file else shown.model.name
    argument = render_qemu(shown, name, named)
    rendering = argument if platform == "qemu" else render(shown, platform, name)
    if applying is not None and not rendering.refusals:
        return applied(applying, shown, rendering, dry_run=dry_run, as_json=as_json)
    if as_json:
        answer = Answer(
            baseline=baseline,
            accelerator=cpus.accelerator.value if cpus else "",
            cpu=argument.files[0].text.strip().removeprefix("-cpu ").strip("'"),
            rendering=rendering,
            growth=ways,
        )
        click.echo(to_json(answer, indent=2).decode())
    else:
        _print(baseline, rendering)
        for way in ways:
            click.echo(f"without {', '.join(way.without)}: wins {' '.join(way.wins)}")
        if grow and not ways:
            click.echo("no host stands in the way of another feature")
    return REFUSED if rendering.refusals else 0


def _stored_pool(file: Path | None) -> Pool:
    """The pool of ``--pool``."""
    from isthmus.values import read_value

    assert file is not None
    return read_value(file, Pool)


def _check_usage(
    hosts: tuple[str, ...],
    file: Path | None,
    join: str | None,
    raising: bool,
    leave: tuple[str, ...],
    guests: tuple[str, ...],
) -> None:
    if (join is not None or raising) and file is None:
        raise click.UsageError("--join and --raise need --pool FILE")
    if join is not None and raising:
        raise click.UsageError("--join and --raise are two steps: take one after the other")
    if (leave or guests) and not raising:
        raise click.UsageError("--leave and --guest belong to --raise")
    if hosts and (join is not None or raising):
        raise click.UsageError("the pool's file names its hosts: give no HOST with it")
    if not hosts and file is None:
        raise click.UsageError("name at least one HOST, or --pool FILE")


def _silicon(host: CpuModel) -> bool:
    """Whether it describes a real CPU, not what a hypervisor offers of it."""
    return "query-cpu-model-expansion" not in host.source and "hypervisor" not in host.features


def _read(names: Sequence[str], accel: str | None) -> tuple[tuple[CpuModel, ...], QemuCpus | None]:
    """The hosts, and the models of the QEMU here; None where there is none and none is needed."""
    try:
        qemu = find_qemu()
    except EnvironmentLackError:
        if accel or not all(is_file(name) or is_uri(name) or name == HERE for name in names):
            raise
        return read_hosts(names), None
    accelerator = Accelerator(accel) if accel else choose_accelerator(qemu).accelerator
    cpus = asyncio.run(read_cpus(qemu, accelerator))
    return tuple(_host(name, cpus) for name in names), cpus


def _host(name: str, cpus: QemuCpus) -> CpuModel:
    if name == HERE:
        return this_machine().replace(name=HERE)
    if is_uri(name):
        return at_uri(name)
    if "/" in name or name.endswith((".json", ".txt", ".xml")):
        return read_host(Path(name))
    try:
        return cpus.offered(name)
    except InputError as error:
        if not Path(name).exists():
            raise
        raise InputError(error.message, remedy=f"write ./{name} to name the file") from error


def _print(baseline: Baseline, rendering: Rendering) -> None:
    from rich.table import Table
    from rich.text import Text

    model = baseline.model
    console = screen()
    table = Table(title=Text(f"{model.name}: {len(model.features)} features"), title_justify="left")
    table.add_column("host", no_wrap=True)
    table.add_column("gives up", justify="right")
    table.add_column("features", overflow="fold")
    for loss in baseline.losses:
        table.add_row(Text(loss.host), str(len(loss.features)), Text(" ".join(loss.features)))
    console.print(table)
    for reason in baseline.reasons:
        console.print(Text(f"- {reason}"))
    if more := sorted(baseline.arriving - model.features):
        console.print(Text(f"- guests from elsewhere may have {', '.join(more)} as well"))
    for file in rendering.files:
        console.print()
        if rendering.platform != "qemu":
            console.print(Text(f"# {file.name}"), soft_wrap=True)
        console.print(Text(file.text.rstrip("\n")), soft_wrap=True)
    if rendering.platform != "qemu":
        for command in rendering.commands:
            console.print(Text(f"$ {command}"), soft_wrap=True)
        for note in rendering.notes:
            console.print(Text(f"- {note}"), soft_wrap=True)
    for refusal in rendering.refusals:
        click.echo(f"isthmus: refused: {refusal}", err=True)
