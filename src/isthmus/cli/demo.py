"""`isthmus demo`: the failure every product has today, and the two cures, with real guests."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isthmus.cli import lab
from isthmus.errors import InputError, IsthmusError
from isthmus.whole_file import write_whole

if TYPE_CHECKING:
    from isthmus.qualification.demo.perform import Plan, Script

ACTS = ("without", "levelled", "translated")


@click.command()
@click.option(
    "--pair",
    metavar="PAIR",
    help="classic (phenom,Penryn), modern (EPYC-Milan,Icelake-Server), or two CPU models of QEMU"
    " as A,B: the guest is born on A. With --kvm two lab hosts.  [default: classic; with --kvm"
    " phenom,haswell]",
)
@click.option(
    "--kvm",
    is_flag=True,
    help="On hosts with the real KVM of their makers, emulated for the demo; takes minutes.",
)
@click.option(
    "--moves",
    type=click.IntRange(1, 100_000),
    help="Moves in act 2.  [default: 10; with --kvm 2]",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(ACTS),
    help="Only this act; may be given more than once.",
)
@click.option(
    "--kernel", metavar="KERNEL", help="The guest's: a series (6.12), a package or a vmlinuz."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    default="isthmus-demo.html",
    show_default=True,
    metavar="FILE",
    help="Where the HTML report goes; - for none.",
)
@click.option("--dry-run", is_flag=True, help="Tell what would be done; start no guest.")
@lab.engine_option
@lab.qemu_option
@lab.json_option
def demo(
    *,
    pair: str | None,
    kvm: bool,
    moves: int | None,
    only: tuple[str, ...],
    kernel: str | None,
    report: Path,
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
      isthmus demo --pair EPYC-Rome,Cascadelake-Server --json | jq '.acts[].moves[]'
      isthmus demo --moves 200 --only levelled
      isthmus demo --kvm
    """
    from rich.console import Console

    from isthmus.places import cache_folder
    from isthmus.qualification.demo.acts import KVM_MOVES, MOVES
    from isthmus.qualification.demo.pairs import pair_of
    from isthmus.qualification.demo.perform import Script, perform, planned
    from isthmus.qualification.demo.report import html
    from isthmus.qualification.demo.result import ActName
    from isthmus.qualification.demo.terminal import TerminalDisplay, summary
    from isthmus.values import to_json

    if kvm and engine == "tcg":
        raise InputError(
            "--kvm and --engine tcg exclude each other", remedy="leave one of them out"
        )
    source, destination = pair_of(pair, kvm=kvm)
    script = Script(
        source=source,
        destination=destination,
        moves=moves or (KVM_MOVES if kvm else MOVES),
        kvm=kvm,
        only=tuple(ActName(name) for name in only or ACTS),
        qemu=qemu,
        engine=engine,
        kernel=kernel,
    )
    if dry_run:
        plan = lab.run(planned(script))
        click.echo(to_json(plan, indent=2) if as_json else _plan_text(plan, script))
        return 0
    wanted = None if str(report) == "-" else _writable(report)
    console = Console(stderr=as_json)
    with TerminalDisplay(console) as display:
        result = lab.run(perform(script, display, cache=cache_folder()))
    if wanted is not None:
        _write(wanted, html(result))
    if as_json:
        click.echo(to_json(result, indent=2))
    else:
        console.print()
        console.print(summary(result, str(wanted or "")))
    return 0 if result.ok else 1


def _writable(path: Path) -> Path:
    """The report's path, known to be writable before minutes of work go into it."""
    target = path.absolute()
    there = target if target.exists() else target.parent
    if not target.parent.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"--report {path}: cannot be written", remedy="name another file, or - for no report"
        )
    return path


def _write(path: Path, text: str) -> None:
    """Write the report, whole or not at all."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise IsthmusError(
            f"{path}: the report cannot be written: {error.strerror}",
            remedy="free some space, or name another file with --report",
        ) from error


def _plan_text(plan: "Plan", script: "Script") -> str:
    lines = [
        f"engine       {plan.engine}: {plan.engine_reason}",
        f"QEMU         {plan.qemu}",
        f"kernel       {script.kernel or 'the newest cloud kernel of this distribution'}",
    ]
    for role, host, other in (
        ("source", plan.source, plan.destination),
        ("destination", plan.destination, plan.source),
    ):
        only = ", ".join(host.only) or "nothing"
        lines.append(f"{role:<12} {host.name} ({host.vendor}), {host.brand}")
        if not script.kvm:  # what lab hosts have is asked of them when they are up
            lines.append(f"{'':<12} has, and {other.name} lacks: {only}")
    lines.append(f"level        {plan.level}")
    lines += [f"{'':<12} {reason}" for reason in plan.level_reasons]
    for number, name in enumerate(ACTS, 1):
        if name in script.only:
            lines.append(f"act {number}        {_ACT_TEXT[name].format(**_words(plan, script))}")
    return "\n".join(lines)


_ACT_TEXT = {
    "without": "boot on {source}, migrate to {destination} by plain QMP, watch",
    "levelled": "boot on {source} levelled, then {moves} moves there and back",
    "translated": "boot on {source} not levelled, move to {destination} translated, and home",
}


def _words(plan: "Plan", script: "Script") -> dict[str, object]:
    return {
        "source": plan.source.name,
        "destination": plan.destination.name,
        "moves": script.moves,
    }
