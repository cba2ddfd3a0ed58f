"""`isthmus lab`: hosts with real KVM or Xen, emulated on this machine."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import click

from isthmus.cli import lab as shared
from isthmus.cli.lab_libvirt import libvirt
from isthmus.cli.lab_shell import open_shell
from isthmus.cli.lab_xen import xen
from isthmus.places import cache_folder
from isthmus.qualification.kvm import host as lab_host
from isthmus.qualification.kvm.host import LabHost
from isthmus.qualification.kvm.pool import PREFIX, lab_folder

DEFAULT = ("epyc", "opteron2")
"""What `up` starts when no host is named: two that differ in what guests notice."""


@click.group()
def lab() -> None:
    """Start and stop hosts on this machine: real KVM or Xen, emulated, or real libvirt daemons.

    \b
    Examples:
      isthmus lab kvm up
      isthmus guest start web --host kvm:epyc --level-with kvm:opteron2
      isthmus migrate web --to kvm:opteron2
      isthmus lab kvm down
      isthmus lab libvirt up
    """


lab.add_command(xen)
lab.add_command(libvirt)


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


@kvm.command("try")
@click.argument("names", nargs=-1, metavar="[HOST]...")
@shared.json_option
def try_(names: tuple[str, ...], as_json: bool) -> None:
    """Boot a guest in each lab host that is up, see that it runs under KVM, and end it.

    \b
    Examples:
      isthmus lab kvm try
      isthmus lab kvm try epyc --json
    """
    from isthmus.errors import HypervisorError
    from isthmus.places import run_folder
    from isthmus.qualification.kvm.cases.run import boot_guests
    from isthmus.values import to_json

    hosts = {name: _named(name) for name in map(_bare, names)} or lab_host.started(lab_folder())
    lived = shared.run(
        boot_guests(hosts, run=run_folder(), cache=cache_folder(), progress=_progress())
    )
    if as_json:
        click.echo(to_json(lived))
    for one in lived if not as_json else ():
        click.echo(
            f"{one.host:14} a guest of Linux {one.guest_kernel} reported after {one.seconds:.1f} s,"
            f" run by {'KVM' if one.kvm else 'emulation'}"
        )
    if slow := [one.host for one in lived if not one.kvm]:
        raise HypervisorError(f"{', '.join(slow)}: the guest was not run by KVM")


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
    open_shell(_named(_bare(name)).channel(), command)


def _bare(name: str) -> str:
    return name.removeprefix(PREFIX)


def _named(name: str) -> LabHost:
    from isthmus.errors import InputError

    hosts = lab_host.started(lab_folder())
    if name not in hosts:
        raise InputError(
            f"{name}: no lab host of that name is up",
            remedy=f"up are: {', '.join(hosts) or 'none'}",
        )
    return hosts[name]


@kvm.command()
@click.option("--only", metavar="N,N", default="", help="Only the failures of these numbers.")
@click.option("--list", "list_only", is_flag=True, help="List the failures, and run nothing.")
@click.option(
    "--write",
    "pages",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the table; in one that has marks for it, only what is between them.",
)
@shared.qemu_option
@shared.json_option
def selftest(only: str, list_only: bool, pages: tuple[Path, ...], qemu: str, as_json: bool) -> None:
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
    for page in pages:
        _page(page)
    if list_only:
        for case in cases:
            click.echo(f"{case.number:2}  {case.title} ({', '.join(case.hosts)})")
        return
    progress = _progress()

    def keep(report: Report) -> None:
        for page in pages:
            text = table.rewritten(_page(page), report)
            try:
                page.write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{page}: {error.strerror}") from error

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


def _page(path: Path) -> str:
    """What the page has now, empty if there is none; refused where it is somebody else's."""
    from isthmus.errors import InputError
    from isthmus.qualification.kvm.cases import table

    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder", remedy="name a file in a folder")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not table.takes(text):
        raise InputError(
            f"{path}: holds something else",
            remedy=f"name another file, or put the lines {table.BEGIN} and {table.END} into it",
        )
    return text


@kvm.command()
def down() -> None:
    """Stop all lab hosts with the guests in them, and remove their files.

    \b
    Examples:
      isthmus lab kvm down
    """
    for name in shared.run(lab_host.down(lab_folder())):
        click.echo(f"{name} is down", err=True)
