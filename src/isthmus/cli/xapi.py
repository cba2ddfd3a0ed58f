"""`isthmus xapi`: pools of XenServer and XCP-ng, the level of their CPUs and what lowers it.

Guests are moved by `isthmus migrate`.
"""

from typing import TYPE_CHECKING

import click

from isthmus.cli import lab

if TYPE_CHECKING:
    from isthmus.hypervisor.xapi.compatibility import Joining
    from isthmus.hypervisor.xapi.inventory import Inventory

_SHOWN = 12
"""How many features are shown on a line; --json has all."""


@click.group()
def xapi() -> None:
    """Show pools of XenServer and XCP-ng. Not yet run on a real XenServer.

    The password comes from ISTHMUS_XAPI_PASSWORD, a file (ISTHMUS_XAPI_PASSWORD_FILE, or
    password-file=FILE in the address) or ~/.netrc, never from the command line. Certificates are
    always verified: by the machine's authorities, by cacert=FILE, or pinned by fingerprint=SHA256.

    \b
    Examples:
      isthmus xapi pool xapi://pool.example
      isthmus migrate web --from xapi://pool.example --to xapi://pool.example/host2
    """


@xapi.command()
@click.argument("address", metavar="URI")
@click.option("--join", "joining", metavar="URI", help="Tell what it means that these hosts join.")
@lab.json_option
def pool(address: str, joining: str | None, as_json: bool) -> None:
    """Show a pool's hosts, the CPU level of its guests, and which hosts lower it.

    \b
    Examples:
      isthmus xapi pool xapi://pool.example
      isthmus xapi pool 'xapi://root@10.0.0.1?fingerprint=…' --json
      isthmus xapi pool xapi://pool.example --join xapi://newhost.example
    """
    from isthmus.hypervisor.xapi.address import parse
    from isthmus.hypervisor.xapi.compatibility import joining as judge
    from isthmus.hypervisor.xapi.connection import Connection
    from isthmus.hypervisor.xapi.inventory import inventory

    with Connection.open(parse(address)) as connection:
        known = inventory(connection)
    new: dict[str, Joining] = {}
    if joining:
        with Connection.open(parse(joining)) as connection:
            new = {host.name: judge(host.cpu, known.level) for host in inventory(connection).hosts}
    if as_json:
        _print_json(known, new)
    else:
        _print(known, new)


def _print_json(known: "Inventory", new: "dict[str, Joining]") -> None:
    from isthmus.hypervisor.xapi.compatibility import given_up, lowering
    from isthmus.hypervisor.xapi.featureset import names, written
    from isthmus.values import to_json

    level = known.level
    document = {
        "schema": 1,
        "pool": known.name,
        "uuid": known.record.uuid,
        "level": {
            "vendor": level.vendor,
            "hvm": written(level.hvm),
            "pv": written(level.pv),
            "features": names(level.hvm),
        },
        "hosts": [
            {
                "name": host.name,
                "uuid": host.record.uuid,
                "address": host.record.address,
                "enabled": host.record.enabled,
                "vendor": host.cpu.vendor,
                "model": host.record.cpu_info.get("modelname", ""),
                "gives_up": given_up(host.cpu, level),
            }
            for host in known.hosts
        ],
        "lowered_by": lowering([host.cpu for host in known.hosts]),
        "joining": new,
    }
    click.echo(to_json(document))


def _print(known: "Inventory", new: "dict[str, Joining]") -> None:
    from isthmus.hypervisor.xapi.compatibility import given_up, level_of, lowering
    from isthmus.hypervisor.xapi.failures import printable
    from isthmus.hypervisor.xapi.featureset import names, written

    level = known.level
    hosts = [host.cpu for host in known.hosts]
    click.echo(f"pool {known.name}: guests start with {len(names(level.hvm))} features")
    click.echo(f"  featureset  {written(level.hvm) or 'not told'}")
    for host in known.hosts:
        model = " ".join(printable(host.record.cpu_info.get("modelname", "")).split())
        state = "" if host.record.enabled else ", disabled"
        click.echo(f"host {host.name}: {host.cpu.vendor}, {model}{state}")
        if lost := given_up(host.cpu, level):
            click.echo(f"  gives up    {_some(lost)}")
    for one in lowering(hosts):
        click.echo(f"without {one.host} new guests would have {_some(one.features)}")
    if len({host.vendor for host in hosts}) > 1:
        click.echo("the hosts are of different makers: their guests move to none of the other's")
    elif level_of(hosts).hvm != level.hvm:
        click.echo(
            "the pool's level is not what its hosts have in common: XAPI has yet to see them"
        )
    for name, verdict in new.items():
        for obstacle in verdict.obstacles:
            click.echo(f"{name} cannot join: {obstacle.text}")
        if not verdict.obstacles:
            loss = f"new guests lose {_some(verdict.loses)}" if verdict.loses else "nothing is lost"
            click.echo(f"{name} can join: {loss}")


def _some(features: tuple[str, ...]) -> str:
    more = len(features) - _SHOWN
    return ", ".join(features[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
