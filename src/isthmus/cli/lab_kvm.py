"""`isthmus lab`: hosts with real KVM, emulated on this machine."""

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from isthmus.cli import lab as shared
from isthmus.places import cache_folder
from isthmus.qualification.kvm import host as lab_host
from isthmus.qualification.kvm.channel import Channel
from isthmus.qualification.kvm.host import LabHost
from isthmus.qualification.kvm.pool import PREFIX, lab_folder

DEFAULT = ("epyc", "opteron2")
"""What `up` starts when no host is named: two that differ in what guests notice."""


_END_OF_INPUT = b"\x04"
"""What a terminal takes for the end (termios(3), VEOF)."""


@click.group()
def lab() -> None:
    """Start and stop hosts with real KVM, emulated on this machine.

    \b
    Examples:
      isthmus lab kvm up
      isthmus guest start web --host kvm:epyc --level-with kvm:opteron2
      isthmus migrate web --to kvm:opteron2
      isthmus lab kvm down
    """


@lab.group()
def kvm() -> None:
    """Hosts whose kernel has KVM: an emulated machine each, with the distribution's QEMU in it.

    \b
    Examples:
      isthmus lab kvm up epyc opteron3
      isthmus lab kvm status
      isthmus lab kvm shell epyc
    """


@kvm.command()
@click.argument("names", nargs=-1, metavar="[HOST]...")
@click.option("--kernel", metavar="KERNEL", help="The guests' kernel, to be brought beforehand.")
@shared.qemu_option
@shared.json_option
def up(names: tuple[str, ...], kernel: str | None, qemu: str, as_json: bool) -> None:
    """Start lab hosts and wait until KVM answers in each; epyc and opteron2 by default.

    The first start boots them (10 s each) and freezes them into the cache; later ones wake them.

    \b
    Examples:
      isthmus lab kvm up
      isthmus lab kvm up phenom opteron2 --json
    """
    from isthmus.hypervisor.qemu.binary import find_qemu
    from isthmus.qualification.kvm import together
    from isthmus.values import to_json

    async def work() -> list[LabHost]:
        return await together.start(
            names or DEFAULT,
            await asyncio.to_thread(find_qemu, qemu),
            run=lab_folder(),
            cache=cache_folder(),
            kernel=kernel,
            progress=_progress(),
        )

    started = shared.run(work())
    if as_json:
        click.echo(to_json(started))
    else:
        for host in started:
            click.echo(_line(host))


def _progress() -> Callable[[str], None]:
    """Tells each step with the seconds since now."""
    begun = time.monotonic()
    return lambda text: click.echo(f"{time.monotonic() - begun:6.1f} s  {text}", err=True)


@kvm.command()
@shared.json_option
def status(as_json: bool) -> None:
    """List the lab hosts that are up, with their versions.

    \b
    Examples:
      isthmus lab kvm status
    """
    from isthmus.values import to_json

    hosts = list(lab_host.started(lab_folder()).values())
    if as_json:
        click.echo(to_json(hosts))
        return
    for host in hosts:
        click.echo(_line(host))
    if not hosts:
        click.echo("no lab host is up", err=True)


def _line(host: LabHost) -> str:
    return (
        f"{PREFIX + host.name:14} {host.kvm}, Linux {host.kernel}, QEMU {host.qemu};"
        f" emulated as {host.model.cpu} by {host.emulator}, pid {host.process.identity.pid},"
        f" {'woken' if host.restored else 'booted'} in {host.seconds:.1f} s"
    )


@kvm.command()
@click.argument("name", metavar="HOST")
@click.argument("command", nargs=-1)
def shell(name: str, command: tuple[str, ...]) -> None:
    """Open a shell in a lab host, or run COMMAND in its shell.

    \b
    Examples:
      isthmus lab kvm shell epyc
      isthmus lab kvm shell epyc 'dmesg | tail'
    """
    from isthmus.errors import InputError

    hosts = lab_host.started(lab_folder())
    host = hosts.get(name.removeprefix(PREFIX))
    if host is None:
        raise InputError(
            f"{name}: no lab host of that name is up",
            remedy=f"up are: {', '.join(hosts) or 'none'}",
        )
    channel = host.channel()
    if command:
        click.echo(shared.run(channel.run("/bin/sh", "-c", " ".join(command))), nl=False)
    else:
        with _raw_terminal():
            shared.run(_interact(channel))


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def _interact(channel: Channel) -> None:
    """Pass the terminal on until the shell ends."""
    loop = asyncio.get_running_loop()
    reader, writer = await channel.open("shell")
    typed = asyncio.StreamReader()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(typed), os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    )

    async def send() -> None:
        while block := await typed.read(1 << 16):
            writer.write(block)
        writer.write(_END_OF_INPUT)

    sending = asyncio.create_task(send())
    with contextlib.suppress(OSError):
        while block := await reader.read(1 << 16):
            os.write(sys.stdout.fileno(), block)
    sending.cancel()


@kvm.command()
@click.option("--only", metavar="N,N", default="", help="Only the failures of these numbers.")
@click.option("--list", "list_only", is_flag=True, help="List the failures, and run nothing.")
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page with the table.",
)
@shared.qemu_option
@shared.json_option
def selftest(only: str, list_only: bool, write: Path | None, qemu: str, as_json: bool) -> None:
    """Reproduce the failures of moves between makers, and cure them, on lab hosts.

    Lab hosts that are up are used; the others are started and ended again.  Ends with status 1
    if anything went otherwise than expected.

    \b
    Examples:
      isthmus lab kvm selftest --list
      isthmus lab kvm selftest --only 1,5
      isthmus lab kvm selftest --write docs/kvm-selftest.md
    """
    from isthmus.errors import InputError, IsthmusError
    from isthmus.hypervisor.qemu.binary import find_qemu
    from isthmus.places import run_folder
    from isthmus.qualification.kvm.cases import table
    from isthmus.qualification.kvm.cases.registry import chosen
    from isthmus.qualification.kvm.cases.run import Report
    from isthmus.qualification.kvm.cases.run import selftest as run_cases
    from isthmus.values import to_json

    try:
        numbers = [int(number) for number in only.split(",") if number.strip()]
    except ValueError as error:
        raise InputError(f"--only {only}: not numbers", remedy="--only 1,5") from error
    cases = chosen(numbers)
    if write is not None and not write.parent.is_dir():
        raise InputError(f"{write.parent}: no such folder", remedy="name a file in a folder")
    if list_only:
        for case in cases:
            click.echo(f"{case.number:2}  {case.title} ({', '.join(case.hosts)})")
        return
    progress = _progress()

    def keep(report: Report) -> None:
        if write is not None:
            try:
                write.write_text(table.page(report), encoding="utf-8")
            except OSError as error:
                raise InputError(f"{write}: {error.strerror}") from error

    async def work() -> Report:
        program = await asyncio.to_thread(find_qemu, qemu)
        return await run_cases(
            cases,
            program,
            run=run_folder(),
            cache=cache_folder(),
            progress=progress,
            so_far=keep,
        )

    report = shared.run(work())
    click.echo(to_json(report) if as_json else "\n".join(table.lines(report)))
    if not report.as_expected:
        raise IsthmusError("not all went as expected", remedy="the table says what was seen")


@kvm.command()
def down() -> None:
    """Stop all lab hosts with the guests in them, and remove their files.

    \b
    Examples:
      isthmus lab kvm down
    """
    for name in shared.run(lab_host.down(lab_folder())):
        click.echo(f"{name} is down", err=True)
