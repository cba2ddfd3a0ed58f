"""``isthmus xen-filter``: the transport of ``xl migrate`` that checks and rewrites the stream."""

from pathlib import Path

import click

from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.report import Report
from isthmus.translate.xen.rules import chosen
from isthmus.translate.xen.transport import run

MAKERS = {"amd": "AuthenticAMD", "hygon": "HygonGenuine", "intel": "GenuineIntel"}


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--to",
    type=click.Choice(sorted(MAKERS)),
    help="Maker of the destination's CPU; without it the stream is checked and nothing rewritten.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write each rewritten field and a summary to this file, one JSON document a line.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def xen_filter(to: str | None, report_path: Path | None, command: tuple[str, ...]) -> int:
    """Check a Xen migration stream on its way, and rewrite what the destination would refuse.

    Standard input goes to COMMAND, or to the standard output without one.  What comes back from
    COMMAND is not touched, so this can be the transport of `xl migrate -s ''`.  A stream that is
    wrong or cut is not sent on: the exit code is 1 and `xl` resumes the guest on its source.

    \b
    Examples:
      xl migrate -s '' vm 'isthmus xen-filter --to amd -- ssh host xl migrate-receive'
      isthmus xen-filter --to amd < vm.save > vm-for-amd.save
      isthmus xen-filter --report vm.jsonl < vm.save > /dev/null     check a saved guest
    """
    maker = MAKERS[to] if to else ""
    report = Report(report_path)
    try:
        _, status = run(command, chosen(rules(), maker), report, to=maker)
    finally:
        report.close()
        for change in report.changes:
            click.echo(
                f"isthmus: {change.record} of vCPU {change.instance}: {change.field} "
                f"{change.before:#x} -> {change.after:#x} ({change.rule})",
                err=True,
            )
    return 1 if status else 0
