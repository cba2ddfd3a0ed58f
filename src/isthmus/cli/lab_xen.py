"""`isthmus lab xen`: hosts with real Xen, emulated on this machine."""

import asyncio
import time
from typing import TYPE_CHECKING

import click

from isthmus.cli import lab as shared
from isthmus.cli.lab_shell import open_shell

if TYPE_CHECKING:
    from isthmus.qualification.xen.host import LabHost

DEFAULT = ("opteron3", "nehalem")
"""What `up` starts when no host is named: one of each maker, and the quickest to boot."""


@click.group()
def xen() -> None:
    """Hosts that run real Xen: an emulated machine each, with the distribution's dom0 in it.

    \b
    Examples:
      isthmus lab xen up opteron3 nehalem
      isthmus lab xen start web --host opteron3 --level-with nehalem
      isthmus migrate web --from xen+lab://opteron3 --to xen+lab://nehalem
      isthmus lab xen down
    """


@xen.command()
@click.argument("names", nargs=-1, metavar="[HOST]...")
@click.option("--packaged", is_flag=True, help="Take the packaged hypervisor: no live PV moves.")
@shared.qemu_option
@shared.json_option
def up(names: tuple[str, ...], packaged: bool, qemu: str, as_json: bool) -> None:
    """Start Xen hosts and wait until xl answers in each; opteron3 and nehalem by default.

    The first start rebuilds the hypervisor from the distribution's source (two minutes or more):
    the packaged one cannot move PV guests live.

    \b
    Examples:
      isthmus lab xen up
      isthmus lab xen up epyc skylake
      isthmus lab xen up opteron3 --packaged --json
    """
    from isthmus.hypervisor.qemu.binary import find_qemu
    from isthmus.places import cache_folder
    from isthmus.qualification.lab.hosts import starting
    from isthmus.qualification.xen import host as lab_host
    from isthmus.values import to_json

    begun = time.monotonic()

    def progress(text: str) -> None:
        click.echo(f"{time.monotonic() - begun:6.1f} s  {text}", err=True)

    async def work() -> "list[LabHost]":
        models = [lab_host.host_model(name) for name in dict.fromkeys(names or DEFAULT)]
        image, live = await asyncio.to_thread(
            lab_host.image, cache=cache_folder(), packaged=packaged, progress=progress
        )
        program = await asyncio.to_thread(find_qemu, qemu)
        folder = lab_host.lab_folder()
        # Where one fails, the end of this work cancels the others, which then clean up.
        with starting(folder, names or DEFAULT):
            return list(
                await asyncio.gather(
                    *(
                        lab_host.up(model, image, program, live=live, run=folder, progress=progress)
                        for model in models
                    )
                )
            )

    started = shared.run(work())
    if as_json:
        click.echo(to_json(started))
    else:
        for host in started:
            click.echo(_line(host))


@xen.command()
@shared.json_option
def status(as_json: bool) -> None:
    """List the Xen hosts that are up, with their guests.

    \b
    Examples:
      isthmus lab xen status
    """
    from isthmus.qualification.xen import host as lab_host
    from isthmus.values import to_json

    hosts = list(lab_host.started(lab_host.lab_folder()).values())
    if as_json:
        click.echo(to_json(hosts))
        return
    for host in hosts:
        click.echo(_line(host))
        listed = shared.run(host.channel().run("/bin/sh", "-c", "xl list"))
        for row in listed.splitlines()[2:]:
            click.echo(f"  {row}")
    if not hosts:
        click.echo("no Xen host is up", err=True)


def _line(host: "LabHost") -> str:
    return (
        f"{host.address:22} Xen {host.xen}{'' if host.live else ' as packaged'},"
        f" dom0 Linux {host.kernel}; emulated as {host.model.cpu},"
        f" pid {host.process.identity.pid}, booted in {host.seconds:.1f} s"
    )


@xen.command()
@click.argument("name", metavar="GUEST")
@click.option("--host", required=True, metavar="HOST", help="The lab host to start it on.")
@click.option("--level-with", multiple=True, metavar="HOST", help="Level it for this one, too.")
@click.option("--type", "kind", type=click.Choice(["pv", "pvh"]), default="pv", show_default=True)
@click.option("--memory", default=96, show_default=True, metavar="MIB")
@click.option("--vcpus", default=1, show_default=True)
@click.option("--drop", multiple=True, metavar="FEATURE", help="Level it without this, too.")
@click.option("--test", metavar="GROUPS", help="Instructions to exercise; see docs/payload.md.")
def start(
    name: str,
    host: str,
    level_with: tuple[str, ...],
    kind: str,
    memory: int,
    vcpus: int,
    drop: tuple[str, ...],
    test: str | None,
) -> None:
    """Start a guest under the payload on a Xen host.

    \b
    Examples:
      isthmus lab xen start web --host opteron3 --level-with nehalem
      isthmus lab xen start old --host nehalem
    """
    from isthmus.baseline.level import level
    from isthmus.hypervisor.xen.host import Type, read_host
    from isthmus.hypervisor.xen.runner import runner_of
    from isthmus.places import cache_folder
    from isthmus.qualification.xen import guest
    from isthmus.qualification.xen import host as lab_host

    async def work() -> None:
        hosts = [lab_host.named(one) for one in (host, *level_with)]
        type_ = Type(kind)
        common = None
        if level_with or drop:
            told = await asyncio.gather(*(read_host(runner_of(one.address)) for one in hosts))
            common = level([one.offers[type_.policy] for one in told], drop=drop)
        initrd = await asyncio.to_thread(guest.build_initrd, cache_folder())
        await guest.start(
            hosts[0],
            name,
            initrd,
            kind=type_,
            memory_mib=memory,
            vcpus=vcpus,
            level=common,
            options={"test": test} if test else None,
        )
        click.echo(f"{name} runs on {hosts[0].address}", err=True)

    shared.run(work())


@xen.command()
@click.argument("name", metavar="GUEST")
@click.option("--host", required=True, metavar="HOST", help="The lab host that it is on.")
def console(name: str, host: str) -> None:
    """Print what a guest's console has said on a host.

    \b
    Examples:
      isthmus lab xen console web --host nehalem
    """
    from isthmus.hypervisor.xen.host import require_name
    from isthmus.qualification.xen import guest
    from isthmus.qualification.xen import host as lab_host

    require_name(name)
    click.echo(shared.run(guest.console(lab_host.named(host), name)), nl=False)


@xen.command()
@click.argument("name", metavar="HOST")
@click.argument("command", nargs=-1)
def shell(name: str, command: tuple[str, ...]) -> None:
    """Open a shell in a host's dom0, or run COMMAND in its shell.

    \b
    Examples:
      isthmus lab xen shell opteron3
      isthmus lab xen shell opteron3 'xl list; xl dmesg | tail'
    """
    from isthmus.qualification.xen import host as lab_host

    open_shell(lab_host.named(name).channel(), command)


@xen.command()
def down() -> None:
    """Stop all Xen hosts with the guests in them, and remove their files.

    \b
    Examples:
      isthmus lab xen down
    """
    from isthmus.qualification.xen import host as lab_host

    for name in shared.run(lab_host.down(lab_host.lab_folder())):
        click.echo(f"{name} is down", err=True)
