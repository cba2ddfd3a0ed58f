"""The command ``isthmus``: a table of commands loaded when used, and the end of every error.

Start-up stays under 250 ms because a command's module is imported only when that command runs;
``isthmus --help`` reads the table alone.  Errors of :mod:`isthmus.errors` become one line on the
standard error and an exit code here, and nowhere else.
"""

import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from isthmus import __version__
from isthmus.errors import IsthmusError

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("isthmus.cli.demo:demo", "Show the failure and both cures with real guests."),
    "guest": ("isthmus.cli.guest:guest", "Start, list, show and stop guests."),
    "migrate": ("isthmus.cli.migrate:migrate", "Move a running guest to another host."),
    "status": ("isthmus.cli.status:status", "Find the truth about migrations under way."),
    "translate": ("isthmus.cli.translate:translate", "Execute for guests what their CPU lacks."),
    "level": ("isthmus.cli.level:level", "Compute the CPU that every host of a pool can honour."),
    "compare": ("isthmus.cli.compare:command", "Show what differs between CPUs, for a guest."),
    "check": ("isthmus.cli.check:check", "Tell beforehand what a guest would notice elsewhere."),
    "targets": ("isthmus.cli.targets:targets", "Tell which hosts could take a guest, best first."),
    "inventory": (
        "isthmus.cli.inventory:inventory",
        "List the CPU and the domains of libvirt's hosts.",
    ),
    "explain": ("isthmus.cli.explain:explain", "Explain an error message about CPUs and moves."),
    "harden": ("isthmus.cli.harden:harden", "Print kernel parameters that defend on every host."),
    "run": ("isthmus.cli.run:run", "Run a program with instructions that this CPU lacks."),
    "xen-filter": (
        "isthmus.cli.xen_filter:xen_filter",
        "Check and rewrite a Xen migration stream on its way.",
    ),
    "xapi": ("isthmus.cli.xapi:xapi", "Show pools of XenServer and XCP-ng, and their CPU level."),
    "cpu": ("isthmus.cli.cpu:cpu", "Read CPU dumps of any format; tell what changed."),
    "lab": ("isthmus.cli.lab_kvm:lab", "Start and stop hosts here: real KVM, Xen, libvirt."),
    "doctor": ("isthmus.cli.doctor:doctor", "Tell what this machine offers and lacks."),
    "completion": ("isthmus.cli.completion:completion", "Print the completion script of a shell."),
}
"""Every command: where it is (``module:attribute``) and its line in ``isthmus --help``."""

INTERRUPTED = 130
_BROKEN_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended: 128 + 13."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for, never for ``--help``."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """The names in the order of the table."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        """Import the command; None for a name that is not in the table."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), entry
        _add_verbose(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest names where there is no such command."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no such command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the table; the commands' own modules are not needed for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table, so that a TAB imports no command."""
        commands = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]


def _set_verbose(_context: click.Context, _option: click.Parameter, count: int) -> None:
    if count:
        level = logging.INFO if count == 1 else logging.DEBUG
        logging.basicConfig(format="isthmus: %(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("isthmus").setLevel(level)


def _verbose_option() -> click.Option:
    return click.Option(
        ["-v", "--verbose"],
        count=True,
        expose_value=False,
        callback=_set_verbose,
        help="Tell on the standard error what is being done; twice for more.",
    )


def _add_verbose(command: click.Command) -> None:
    """Give ``command`` and the commands below it the option --verbose, once."""
    if not any("--verbose" in parameter.opts for parameter in command.params):
        command.params.append(_verbose_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _add_verbose(below)


@click.group(
    cls=LazyGroup,
    params=[_verbose_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 bad input, 3 refused beforehand, 4 rolled back,"
    " 5 undecided, 6 this machine lacks something, 130 interrupted.",
)
@click.version_option(__version__, prog_name="isthmus", message="%(prog)s %(version)s")
def cli() -> None:
    """Live migration of virtual machines between Intel and AMD servers, there and back.

    \b
    Examples:
      isthmus doctor                          what this machine offers
      isthmus demo                            see it work with real guests
      isthmus COMMAND --help                  options and examples of a command
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``isthmus`` with ``arguments`` (the process's own by default) and exit."""
    _print_anything()
    try:
        status = _run(arguments)
        if sys.stdout is not None:  # None: the shell has closed it
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader went away (`isthmus … | head`).
        _drop_output()
        status = _BROKEN_PIPE
    except OSError as error:
        _drop_output()
        _complain(_told(error), None)
        logging.getLogger("isthmus").debug("from here", exc_info=error)
        status = IsthmusError.exit_code
    sys.exit(status)


def _print_anything() -> None:
    """A name that the terminal's character set lacks must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Throw away what could not be printed: the interpreter must not try again at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: OSError) -> str:
    """What the system refused, and of which file: without a name it was the standard output."""
    where = error.filename if error.filename is not None else "the standard output"
    return f"{os.fsdecode(where) if isinstance(where, bytes) else where}: {error.strerror or error}"


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(
            None if arguments is None else list(arguments), "isthmus", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "isthmus"
        _complain(error.format_message(), f"see `{where} --help`")
        return error.exit_code
    except click.ClickException as error:
        _complain(error.format_message(), None)
        return error.exit_code
    except IsthmusError as error:
        _complain(error.message, error.remedy)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("isthmus: interrupted", err=True)
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _complain(message: str, remedy: str | None) -> None:
    """One line for the error, one for what to do about it."""
    click.echo(f"isthmus: error: {' '.join(message.split())}", err=True)
    if remedy:
        click.echo(f"  {' '.join(remedy.split())}", err=True)
