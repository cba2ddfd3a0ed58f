"""``--watch``: stay with a guest that has moved, say what is seen, and record its end."""

import re
import shlex
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from isthmus.errors import IsthmusError

if TYPE_CHECKING:
    from isthmus.cpu.model import CpuModel
    from isthmus.divergence.finding import Finding
    from isthmus.migration.death_notice import WatchRecord
    from isthmus.migration.platforms import Request
    from isthmus.migration.preflight import Preflight
    from isthmus.migration.record import MigrationRecord
    from isthmus.migration.vigil import Eyes
    from isthmus.migration.vigil_libvirt import DomainEyes
    from isthmus.migration.watching import Verdict

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_SPOKEN_S = 60.0
WATCH_S = 30 * 60.0
"""How long a domain of libvirt's that has crossed makers is watched unless the user says otherwise:
the deaths that are known came after 9 to 15 minutes."""
_LONGEST_S = 7 * 24 * 3600


class Duration(click.ParamType[float]):
    """A length of time: ``90``, ``90s``, ``30m``, ``2h``; in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds of such a word."""
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", str(value))
        if match is None:
            self.fail(f"{value!r}: write 90s, 30m or 2h", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if seconds > _LONGEST_S:
            self.fail(f"{value!r}: a week at most", param, ctx)
        return seconds


def watch_option(command: Any) -> Any:
    """The option --watch."""
    return click.option(
        "--watch", type=Duration(), metavar="TIME",
        help="Stay with the guest after the move for so long: 0 for not at all. Between URIs of"
        " libvirt's hosts of two makers 30m unless you say otherwise, or --json.",
    )(command)  # fmt: skip


def unasked() -> float | None:
    """How long a guest is watched that has crossed makers, where the user says nothing of it.

    The move is done: that it cannot be watched here is told, and is no failure.
    """
    if shutil.which("virsh") is None:
        click.echo("  not watched: no virsh here (apt-get install libvirt-clients)", err=True)
        return None
    return WATCH_S


async def stay(
    eyes: "Eyes",
    record: "WatchRecord",
    *,
    seconds: float,
    as_json: bool,
    findings: "Sequence[Finding]" = (),
    shown: "CpuModel | None" = None,
    offer: "CpuModel | None" = None,
    level_command: str = "",
    sample_s: float | None = None,
) -> None:
    """Watch, show, write the record down.

    :raises IsthmusError: the guest died.
    """
    from isthmus.migration.death_notice import describe
    from isthmus.migration.vigil import SAMPLE_S, keep_watch, watch_path, write_watch
    from isthmus.migration.watching import Verdict
    from isthmus.places import state_folder
    from isthmus.values import to_json

    last: list[Any] = [0.0, Verdict(outlook=record.outlook)]

    def tell(verdict: "Verdict", elapsed: float) -> None:
        changed = (verdict.outlook, verdict.warnings) != (last[1].outlook, last[1].warnings)
        if as_json or not (changed or elapsed - last[0] >= _SPOKEN_S):
            return
        last[:] = [elapsed, verdict]
        words = "; ".join(word for word in (verdict.reason, *verdict.warnings) if word)
        click.echo(
            f"  watched {_minutes(elapsed)}: {verdict.outlook}{f': {words}' if words else ''}",
            err=True,
        )

    if not as_json:
        click.echo(f"  watching for {_minutes(seconds)} (Ctrl-C leaves the guest alone)", err=True)
    ended, death = await keep_watch(
        eyes, record, seconds=seconds, tell=tell, sample_s=sample_s or SAMPLE_S
    )
    ended = describe(
        ended, death=death, findings=findings, shown=shown, offer=offer,
        level_command=level_command,
    )  # fmt: skip
    path = watch_path(state_folder() / "migrations", ended.migration)
    write_watch(path, ended)
    if as_json:
        click.echo(to_json(ended))
    else:
        _show(ended)
    if ended.died:
        raise IsthmusError(
            f"{ended.guest} {ended.outlook} under watch, {_minutes(ended.watched_s)} after its"
            f" move: {ended.reason}",
            remedy=f"{ended.advice[0] if ended.advice else 'start it anew'}; the record: {path}",
        )


async def stay_at(
    request: "Request",
    verdict: "Preflight",
    moved: "MigrationRecord",
    seconds: float | None,
    sync_clock: bool,
    as_json: bool,
) -> None:
    """Watch a domain of libvirt on the host that it has come to, after setting its clock.

    One that is translated there has a monitor of ours, and its translator's counts are looked at.

    :raises IsthmusError: the guest died.
    """
    from isthmus.hypervisor.libvirt.virsh import Virsh
    from isthmus.migration.death_notice import WatchRecord
    from isthmus.migration.vigil_libvirt import LOOK_S, DomainEyes

    begun = WatchRecord.begin(request.guest, request.destination, moved.plan.id)
    there = moved.plan.destination
    virsh = Virsh(request.destination)
    async with DomainEyes(virsh, request.guest, translator=there.translator, qmp=there.qmp) as eyes:
        if sync_clock:
            await _set_clock(eyes, request.guest)
        if seconds:
            await stay(
                eyes, begun, seconds=seconds, as_json=as_json, findings=verdict.findings,
                level_command=shlex.join(["isthmus", "level", request.source, request.destination]),
                sample_s=LOOK_S,
            )  # fmt: skip


async def _set_clock(eyes: "DomainEyes", guest: str) -> None:
    """Set the guest's clock; that there is no agent is told, and is no failure of the move."""
    try:
        await eyes.set_clock()
    except IsthmusError as error:
        click.echo(f"  {guest}: its clock was not set: {error.message}", err=True)
    else:
        click.echo(f"  {guest}: its agent has set its clock", err=True)


def _show(record: "WatchRecord") -> None:
    if not record.died:
        why = f": {record.reason}" if record.reason else ""
        click.echo(f"{record.guest} {record.outlook} after {_minutes(record.watched_s)}{why}")
    for line in record.console[-20:]:
        click.echo(f"    {line}", err=True)
    if record.instruction:
        click.echo(f"  {record.instruction}", err=True)
    for rule in record.rules:
        likely = "the rule" if rule.sure else "perhaps"
        click.echo(f"  {likely} {rule.rule} ({rule.subject}): {rule.notice}", err=True)
    for advice in record.advice:
        click.echo(f"  what to do: {advice}", err=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
