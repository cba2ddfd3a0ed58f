"""`isthmus status`: find the truth about guests and migrations, and finish what was cut short."""

import click

from isthmus.cli import lab
from isthmus.errors import IsthmusError


@click.command()
@click.option("--no-recover", is_flag=True, help="Only look; finish or roll back nothing.")
@lab.json_option
def status(no_recover: bool, as_json: bool) -> None:
    """Find the truth about migrations, and finish or roll back what was cut short.

    \b
    Examples:
      isthmus status
      isthmus status --no-recover --json
    """
    lab.run(_status(recover_them=not no_recover, as_json=as_json))


async def _status(*, recover_them: bool, as_json: bool) -> None:
    from isthmus.migration.hosts import recover, revive_translators, unfinished
    from isthmus.migration.record import records, unreadable
    from isthmus.migration.vigil import watches
    from isthmus.values import to_json

    store = lab.store()
    problems = unreadable(store.journals)
    for path in unfinished(store) if recover_them else ():
        try:
            await recover(store, path)
        except IsthmusError as error:
            problems[path.stem] = str(error)
    troubled: dict[str, str] = {}
    revived = await revive_translators(store, troubled) if recover_them else []
    guests, damaged = store.guests()
    troubled |= damaged
    moves = [record for _, record in records(store.journals)]
    watched = watches(store.journals)
    if as_json:
        click.echo(
            to_json(
                {
                    "guests": [
                        {
                            "name": g.name,
                            "host": g.host,
                            "moves": g.hops,
                            "alive": g.process.alive(),
                            "translation": g.translation,
                        }
                        for g in guests
                    ],
                    "migrations": moves,
                    "watches": watched,
                    "problems": problems | troubled,
                    "translators_revived": revived,
                }
            )
        )
        return
    for guest in guests:
        state = "alive" if guest.process.alive() else "dead"
        served = f", {guest.translation.words}" if guest.translation else ""
        click.echo(f"guest {guest.name} on {guest.host}: {state}, {guest.hops} moves{served}")
    for record in moves[-20:]:
        plan = record.plan
        why = f" ({record.error})" if record.error else ""
        click.echo(f"migration {plan.id} of {plan.guest}: {record.phase}{why}")
    for one in watched:
        if one.died:
            click.echo(
                f"migration {one.migration} of {one.guest}: {one.outlook} under watch after"
                f" {one.watched_s:.0f} s: {one.reason}"
            )
    for name in revived:
        click.echo(f"guest {name}: its translator had died and was started again")
    for name, problem in problems.items():
        click.echo(f"migration {name}: {problem}", err=True)
    for name, problem in troubled.items():
        click.echo(f"guest {name}: {problem}", err=True)
