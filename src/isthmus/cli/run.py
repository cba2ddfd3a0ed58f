"""``isthmus run``: a program with the instructions that this CPU lacks."""

import os
from pathlib import Path

import click

from isthmus.translate.preload import environment, program


@click.command(
    no_args_is_help=True,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Append the counts of translated instructions when a process ends.",
)  # fmt: skip
@click.argument("command", nargs=-1, required=True, metavar="PROGRAM [ARGUMENT]...")
def run(report: Path | None, command: tuple[str, ...]) -> None:
    """Run PROGRAM; instructions that this CPU lacks are done for it, in the process itself.

    For containers and checkpointed processes that come from a host with another CPU. Each trap
    costs some 10 microseconds; a run of missing instructions is done in one. Static and set-user-ID
    programs are refused. The exit code is the program's own.

    \b
    Examples:
      isthmus run -- ./simulation --steps 100
      isthmus run --report counts.txt -- python3 job.py
    """
    path = program(command[0])
    os.execve(path, command, environment(dict(os.environ), report))  # noqa: S606 (no shell)
