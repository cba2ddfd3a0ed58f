"""`isthmus migrate`: move a running guest to another host."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isthmus.cli import lab
from isthmus.cli.translate.arm import share, warn_share_option
from isthmus.cli.watching import unasked, watch_option
from isthmus.errors import InputError, IsthmusError
from isthmus.migration.options import Observer, Options, Progress
from isthmus.migration.preflight import Preflight
from isthmus.migration.record import MigrationRecord

if TYPE_CHECKING:
    from isthmus.hypervisor.qemu.guests import GuestStore
    from isthmus.migration.platforms import Request

LONGEST_VERIFY_S = 24 * 3600
"""While it is watched for the commit a guest has two processes; for longer there is --watch."""


@click.command()
@click.argument("guest", required=False)
@click.option(
    "--to", "host", metavar="HOST|URI", help="The destination: a CPU model of QEMU, or a URI."
)
@click.option("--from", "source", metavar="URI", help="The host that runs the guest: a URI.")
@click.option(
    "--translate/--no-translate", default=None,
    help="Whether the translator may be armed [default: where the findings need it].",
)  # fmt: skip
@warn_share_option
@click.option("--accept-risk", multiple=True, metavar="RULE", help="Accept a finding that refuses.")
@click.option(
    "--force", is_flag=True, help="Accept every finding that refuses (between URIs only)."
)
@click.option("--dry-run", is_flag=True, help="Only check; take no step.")
@click.option("--qmp", type=click.Path(path_type=Path), help="A guest's QMP socket, to move it.")
@click.option(
    "--to-qmp", type=click.Path(path_type=Path), help="The QMP socket of its destination."
)
@click.option("--resume", is_flag=True, help="Finish or roll back what was cut short.")
@click.option("--use", type=click.Choice(["source", "destination"]), help="The copy that goes on.")
@click.option("--bandwidth", type=click.IntRange(min=1), metavar="MIB", help="MiB/s at most.")
@click.option("--downtime-limit", type=click.IntRange(min=1), metavar="MS", help="QEMU's target.")
@click.option(
    "--verify", default=10.0, show_default=True, metavar="S", help="Watch at most so long."
)
@click.option(
    "--through", type=click.Path(path_type=Path), metavar="FILE",
    help="Through a new FILE, the guest standing still: for hosts that cannot reach each other.",
)  # fmt: skip
@click.option("--peer", default="", metavar="URI", help="--to, as the source's daemon reaches it.")
@click.option("--link", default="", metavar="URI", help="Where the data goes, as tcp://10.0.0.2.")
@click.option("--postcopy", is_flag=True, help="Switch to postcopy after one pass (between URIs).")
@click.option("--parallel", type=click.IntRange(0, 255), default=0, help="Connections of multifd.")
@click.option("--copy-storage", is_flag=True, help="Copy the guest's disks, too (between URIs).")
@click.option("--tls", is_flag=True, help="Encrypt the guest's data (between URIs).")
@watch_option
@click.option(
    "--sync-clock", is_flag=True, help="Have the guest's agent set its clock there (between URIs)."
)
@lab.qemu_option
@lab.json_option
def migrate(
    guest: str | None,
    host: str | None,
    source: str | None,
    translate: bool | None,
    warn_share: float | None,
    accept_risk: tuple[str, ...],
    force: bool,
    dry_run: bool,
    qmp: Path | None,
    to_qmp: Path | None,
    resume: bool,
    use: str | None,
    bandwidth: int | None,
    downtime_limit: int | None,
    verify: float,
    through: Path | None,
    peer: str,
    link: str,
    postcopy: bool,
    parallel: int,
    copy_storage: bool,
    tls: bool,
    watch: float | None,
    sync_clock: bool,
    qemu: str,
    as_json: bool,
) -> None:
    """Move a running guest to another host, live.

    A guest that `isthmus guest start` has started is moved by name.  A guest of a daemon is moved
    from one host's URI to another's.  Any other QEMU is moved by its QMP socket, to a QEMU that
    waits with `-incoming defer -S`.

    Where the destination lacks instructions that the guest was shown, and all of them can be
    translated, the translator is armed there; --no-translate refuses such a move.

    \b
    Examples:
      isthmus migrate web --to Penryn
      isthmus migrate old --to Penryn --no-translate
      isthmus migrate web --to Penryn --watch 30m
      isthmus migrate web --to Penryn --dry-run --json
      isthmus migrate web --from qemu:///system --to qemu+ssh://root@intel1/system
      isthmus migrate web --from xapi://pool.example --to xapi://pool.example/host2
      isthmus migrate --qmp /run/vm1.qmp --to-qmp /run/vm2.qmp
      isthmus migrate web --to Penryn --through /mnt/share/web.state
      isthmus migrate --resume
    """
    if not 0 <= verify <= LONGEST_VERIFY_S:
        raise InputError(
            f"--verify {verify:g}: no time to watch a guest in",
            remedy=f"say seconds, 0 to {LONGEST_VERIFY_S}",
        )
    options = Options(
        bandwidth=bandwidth << 20 if bandwidth else None,
        downtime_limit_ms=downtime_limit,
        verify_s=verify,
        translate=translate,
        warn_share=share(warn_share),
        through=through.absolute() if through else None,
    )
    wishes = {
        "--through": through, "--watch": watch, "--sync-clock": sync_clock, "--peer": peer,
        "--link": link, "--postcopy": postcopy, "--parallel": parallel,
        "--copy-storage": copy_storage, "--tls": tls,
    }  # fmt: skip
    wished = {name for name, value in wishes.items() if value}
    if resume:
        where = {"--to": host, "--from": source, "--qmp": qmp, "--to-qmp": to_qmp}
        _require_only({name for name, value in where.items() if value} | wished, (), "--resume")
    if use and not resume:
        raise InputError("--use: only with --resume", remedy="isthmus migrate --resume --use …")
    if resume:
        lab.run(_resume(guest, use or "", as_json))
    elif qmp and to_qmp:
        _require_only(wished, {"--watch"}, "a guest that is named by its QMP socket")
        ends = qmp.absolute(), to_qmp.absolute()
        lab.run(_by_socket(*ends, options, accept_risk, watch, as_json))
    elif guest and source and host:
        from isthmus.migration.platforms import TAKES, Request, platform_of

        platform = platform_of(source, host)
        _require_only(wished, TAKES[platform], f"a guest of {platform}")
        request = Request(
            guest=guest,
            source=source,
            destination=host,
            options=options,
            accepted=accept_risk,
            force=force,
            peer=peer,
            link=link,
            postcopy=postcopy,
            parallel=parallel,
            copy_storage=copy_storage,
            tls=tls,
        )
        lab.run(_between(request, dry_run, watch, sync_clock, as_json))
    elif guest and host and not force:
        _require_only(wished, {"--through", "--watch"}, "a guest that Isthmus has started")
        lab.run(_by_name(guest, host, options, accept_risk, dry_run, watch, qemu, as_json))
    else:
        raise InputError(
            "say what to move where",
            remedy="GUEST --to HOST, or GUEST --from URI --to URI, or --qmp SOCKET --to-qmp SOCKET",
        )


def _require_only(wished: Collection[str], possible: Collection[str], whom: str) -> None:
    """Refuse, before anything is touched, what this kind of move has no way to do."""
    if impossible := sorted(set(wished) - set(possible)):
        raise InputError(
            f"{', '.join(impossible)}: not for {whom}",
            remedy="leave it out" if len(impossible) == 1 else "leave them out",
        )


async def _by_name(
    guest: str,
    host: str,
    options: Options,
    accepted: tuple[str, ...],
    dry_run: bool,
    watch: float | None,
    qemu: str,
    as_json: bool,
) -> None:
    from isthmus.migration.hosts import translation_for
    from isthmus.values import to_json

    known = lab.store().read(guest)
    hosts = await lab.hosts(qemu, known.spec.accelerator, among=(known.host, host))
    by = hosts.served(known, host, translate=options.translate is not False)
    verdict = hosts.check(known, host, translate=options.translate is not False, accepted=accepted)
    translation = translation_for(known, verdict, by)
    if not as_json:
        _show_findings(verdict)
        if translation is not None and not verdict.blocking:
            click.echo(
                f"  {translation.words} (the guest was shown them, {host} lacks them)", err=True
            )
        if options.translate is not False and not known.module and not hosts.traps(host):
            click.echo(
                f"  nothing is translated from outside there: guests on {host} stop at no"
                " breakpoint",
                err=True,
            )
        with_module = known.replace(module=True)
        if verdict.blocking and not hosts.check(with_module, host, accepted=accepted).blocking:
            click.echo(
                "  with the module in its kernel the guest could move:"
                " isthmus translate module --help",
                err=True,
            )
    if dry_run:
        if as_json:
            click.echo(to_json(verdict))
        verdict.require()
        return
    with _explained():
        record = await hosts.move(
            guest, host, options, accepted=accepted, observer=_observer(as_json)
        )
    _show(record, as_json)
    await _warn(guest)
    if watch:
        from isthmus.cli.watching import stay
        from isthmus.hypervisor.qemu.guests import level_command
        from isthmus.migration.death_notice import WatchRecord
        from isthmus.migration.vigil import GuestEyes

        await stay(
            GuestEyes(lab.store(), guest),
            WatchRecord.begin(record.plan.guest, host, record.plan.id),
            seconds=watch,
            as_json=as_json,
            findings=verdict.findings,
            shown=known.shown,
            offer=hosts.offered(host),
            level_command=level_command(known.home or known.host, host),
        )


async def _warn(guest: str) -> None:
    """Tell if translation has cost too much already, or has met a problem."""
    from isthmus.migration.arming import look

    report = await look(lab.store(), guest)
    for text in (report.problem, report.warning):
        if text:
            click.echo(f"{guest}: {text}", err=True)


async def _between(
    request: "Request", dry_run: bool, watch: float | None, sync_clock: bool, as_json: bool
) -> None:
    """Move a guest between two hosts of the platform that their addresses belong to."""
    from isthmus.migration.platforms import load, platform_of
    from isthmus.values import to_json

    platform = load(platform_of(request.source, request.destination))
    verdict = await platform.check(request)
    if not as_json:
        _show_findings(verdict)
    if dry_run:
        if as_json:
            click.echo(to_json(verdict))
        verdict.require()
        return
    verdict.require()
    with _explained():
        record = await platform.move(request, lab.store(), _observer(as_json))
    _show(record, as_json)
    if watch is None and verdict.crosses and not as_json:
        watch = unasked()
    if watch or sync_clock:
        from isthmus.cli.watching import stay_at

        await stay_at(request, verdict, record, watch, sync_clock, as_json)


async def _by_socket(
    qmp: Path,
    to_qmp: Path,
    options: Options,
    accepted: tuple[str, ...],
    watch: float | None,
    as_json: bool,
) -> None:
    from isthmus.migration.sockets import move_by_socket

    with _explained():
        record = await move_by_socket(
            qmp, to_qmp, lab.store(), options, accepted=accepted, observer=_observer(as_json)
        )
    _show(record, as_json)
    if watch:
        from isthmus.cli.watching import stay
        from isthmus.migration.death_notice import WatchRecord
        from isthmus.migration.vigil import MonitorEyes

        begun = WatchRecord.begin(record.plan.guest, str(to_qmp), record.plan.id)
        async with MonitorEyes(to_qmp) as eyes:
            await stay(eyes, begun, seconds=watch, as_json=as_json)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Say of a failed move what is known of the messages that it failed with."""
    from isthmus.divergence.messages import explain

    try:
        yield
    except IsthmusError as error:
        for one in explain(str(error)):
            click.echo(f"  {one.means}: {one.cause}", err=True)
            click.echo(f"  what to do: {one.cure}", err=True)
        raise


async def _resume(guest: str | None, use: str, as_json: bool) -> None:
    from isthmus.migration.hosts import recover, unfinished
    from isthmus.migration.record import read_record

    store = lab.store()
    paths = [
        path
        for path in unfinished(store)
        if guest in {None, path.stem, read_record(path).plan.guest}
    ]
    if not paths and guest is not None:
        _require_known(store, guest)
    if not paths:
        click.echo("nothing was cut short", err=True)
    failed: IsthmusError | None = None
    for path in paths:
        try:
            _show(await recover(store, path, use=use), as_json)
        except IsthmusError as error:
            # The others are not to wait for this one.
            if failed is not None:
                click.echo(f"isthmus: error: {failed}", err=True)
            failed = error
    if failed is not None:
        raise failed


def _require_known(store: "GuestStore", name: str) -> None:
    """Tell a name that is only misspelt from a guest or a migration with which all is well.

    :raises InputError: nothing here has that name.
    """
    from isthmus.migration.record import records

    if name in store.names():
        return
    for path, record in records(store.journals):
        if name in {path.stem, record.plan.guest}:
            return
    raise InputError(
        f"{name}: no guest and no migration of that name", remedy="`isthmus status` lists them"
    )


def _observer(quiet: bool) -> Observer:
    """Who shows the progress: no lost terminal, and no reader that went away, holds up a guest."""

    def observe(progress: Progress) -> None:
        if not quiet:
            with contextlib.suppress(OSError):
                show(progress)

    def show(progress: Progress) -> None:
        transfer = progress.transfer
        if transfer is None:
            click.echo(f"  {progress.phase}", err=True)
        elif transfer.total:
            done = 100 * (1 - transfer.remaining / transfer.total)
            sent = ""
            if transfer.transferred:  # not every platform tells
                sent = f", {transfer.transferred >> 20} MiB sent, {transfer.rate_mbps:.0f} Mbit/s"
            click.echo(f"  moving: {done:.0f} %{sent}", err=True)

    return observe


def _show_findings(verdict: Preflight) -> None:
    for finding in verdict.findings:
        click.echo(f"  {finding.severity:9} {finding.subject}: {finding.notice}", err=True)


def _show(record: MigrationRecord, as_json: bool) -> None:
    from isthmus.values import to_json

    if as_json:
        click.echo(to_json(record))
        return
    figures = record.figures
    plan = record.plan
    where = f" from {plan.source_host} to {plan.destination_host}" if plan.source_host else ""
    click.echo(f"{plan.guest}{where}: {record.phase}")
    if plan.translation is not None:
        click.echo(f"  {plan.translation.words}")
    if figures is not None:
        # 0: the platform does not measure it.
        down = f" downtime {figures.downtime_ms:.0f} ms," if figures.downtime_ms else ""
        click.echo(
            f"  total {figures.total_ms:.0f} ms,{down} {figures.moved_bytes / 2**20:.0f} MiB moved"
            + (", by postcopy in the end" if figures.postcopy else "")
        )
    if record.error and not record.final:
        raise IsthmusError(record.error, remedy="isthmus status")
