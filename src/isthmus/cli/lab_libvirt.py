"""`isthmus lab libvirt`: two real libvirt hosts on this machine, one AMD and one Intel."""

import asyncio
import uuid
from pathlib import Path

import click

from isthmus.cli import lab as shared
from isthmus.errors import InputError
from isthmus.places import cache_folder
from isthmus.qualification.lab import libvirt_host as lab_host
from isthmus.qualification.lab import libvirt_ssh as lab_ssh
from isthmus.qualification.lab.libvirt_host import LibvirtHost


@click.group()
def libvirt() -> None:
    """Hosts with a real libvirtd each, in namespaces of their own, joined by a network cable.

    \b
    Examples:
      isthmus lab libvirt up
      isthmus lab libvirt guest web
      isthmus lab libvirt status
      isthmus lab libvirt down
    """


@libvirt.command()
@click.option("--amd", default="phenom", show_default=True, metavar="MODEL", help="What amd plays.")
@click.option(
    "--intel", default="Nehalem", show_default=True, metavar="MODEL", help="What intel plays."
)
@click.option("--ssh", is_flag=True, help="With an ssh server in each, for qemu+ssh:// addresses.")
@shared.qemu_option
@shared.json_option
def up(amd: str, intel: str, ssh: bool, qemu: str, as_json: bool) -> None:
    """Start both hosts with their daemons, as root; they stay until `down`.

    \b
    Examples:
      isthmus lab libvirt up
      isthmus lab libvirt up --ssh
      isthmus lab libvirt up --amd EPYC --intel Haswell
    """
    from isthmus.values import to_json

    if ssh:
        lab_ssh.require()
    hosts = lab_host.up_both({"amd": amd, "intel": intel}, qemu, lab_host.lab_folder())
    if ssh:
        try:
            lab_ssh.serve(hosts, cache_folder())
        except BaseException:
            for host in hosts.values():
                host.stop()
            raise
    if as_json:
        click.echo(to_json(list(hosts.values())))
    else:
        _list(hosts)


@libvirt.command()
@shared.json_option
def status(as_json: bool) -> None:
    """List the libvirt hosts that are up, with their addresses.

    \b
    Examples:
      isthmus lab libvirt status
    """
    from isthmus.values import to_json

    hosts = lab_host.started(lab_host.lab_folder())
    if as_json:
        click.echo(to_json(list(hosts.values())))
        return
    _list(hosts)
    if not hosts:
        click.echo("no libvirt host is up", err=True)


@libvirt.command()
@click.argument("name")
@click.option("--host", default="amd", show_default=True, help="Where it is born.")
@click.option("--unlevelled", is_flag=True, help="Show it all that the host offers (host-model).")
@click.option("--define", is_flag=True, help="With a definition, so that it can be started anew.")
@click.option("--agent", is_flag=True, help="With QEMU's guest agent, opened from its package.")
@click.option("--memory", default=256, show_default=True, metavar="MIB", help="Its memory.")
@click.option("--test", default="", metavar="WORDS", help="What the payload executes.")
@click.option("--kernel", metavar="KERNEL", help="As for `isthmus guest start`.")
def guest(
    name: str,
    host: str,
    unlevelled: bool,
    define: bool,
    agent: bool,
    memory: int,
    test: str,
    kernel: str | None,
) -> None:
    """Start a guest with the lab's payload on a host, levelled for both.

    \b
    Examples:
      isthmus lab libvirt guest web
      isthmus lab libvirt guest old --unlevelled --test rdtscp,sse4a
      isthmus lab libvirt guest web --define --unlevelled
    """
    from isthmus.qualification.lab.agent import agent_entries
    from isthmus.qualification.lab.image import build_image
    from isthmus.qualification.lab.libvirt_guest import start

    hosts = lab_host.started(lab_host.lab_folder())
    if host not in hosts:
        raise InputError(
            f"{host}: no libvirt host of that name is up", remedy="isthmus lab libvirt up"
        )
    more = agent_entries(cache_folder()) if agent else ()
    image = build_image(kernel, cache=cache_folder(), more=more)
    domain = asyncio.run(
        start(
            name,
            hosts[host],
            image,
            level_with=() if unlevelled else tuple(hosts.values()),
            identity=str(uuid.uuid4()),
            folder=Path(hosts[host].folder).parent,
            memory_mib=memory,
            options={"test": test} if test else {},
            agent=agent,
            persistent=define,
        )
    )
    click.echo(f"{name} on {host}; its console is {domain.console}, its reports {domain.payload}")


@libvirt.command()
@click.argument("names", nargs=-1, metavar="[HOST]...")
def down(names: tuple[str, ...]) -> None:
    """End hosts with all their guests: those named, or all.

    \b
    Examples:
      isthmus lab libvirt down
    """
    for name, host in lab_host.started(lab_host.lab_folder()).items():
        if not names or name in names:
            host.stop()


def _list(hosts: dict[str, LibvirtHost]) -> None:
    by_ssh = lab_ssh.addresses(hosts)
    for host in hosts.values():
        click.echo(f"{host.name} plays {host.plays}")
        click.echo(f"  --from or --to  '{host.uri}'")
        click.echo(f"  --peer          {host.peer_uri}")
        if host.name in by_ssh:
            click.echo(f"  by ssh          '{by_ssh[host.name]}'")
    if by_ssh:
        click.echo(
            f"amd1 and intel1 by ssh: Include {lab_ssh.folder_of(hosts) / 'config'}"
            " at the top of ~/.ssh/config"
        )
