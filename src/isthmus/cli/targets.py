"""``isthmus targets``: the hosts that could take a guest, best first, and why others cannot."""

import click

from isthmus.cli.hosts import read_hosts
from isthmus.cli.placements import covered, translate_options
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.finding import Severity
from isthmus.migration.preflight import Preflight, preflight
from isthmus.values import Value, to_json


class Target(Value, frozen=True):
    """A host as a guest's destination: whether it can take it, how many findings, why not."""

    host: str
    takes: bool
    translates: tuple[str, ...]
    warns: int
    reasons: tuple[str, ...]


def ranked(verdicts: list[Preflight]) -> list[Target]:
    """The hosts, best first: those that take it, by translated features, warnings, then name."""
    return sorted(map(_target, verdicts), key=_order)


def _target(verdict: Preflight) -> Target:
    by_severity = {severity: [] for severity in Severity}  # type: dict[Severity, list[str]]
    for finding in verdict.findings:
        by_severity[finding.severity].append(finding.subject)
    return Target(
        host=verdict.destination_host,
        takes=not verdict.blocking,
        translates=tuple(sorted(by_severity[Severity.TRANSLATE])),
        warns=len(by_severity[Severity.WARN]),
        reasons=tuple(f"{f.subject}: {f.notice} [{f.rule}]" for f in verdict.blocking),
    )


def _order(target: Target) -> tuple[bool, int, int, int, str]:
    return (
        not target.takes, len(target.reasons), len(target.translates), target.warns, target.host,
    )  # fmt: skip


@click.command(no_args_is_help=True)
@click.argument("guest")
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@translate_options()
@click.option("--memory", default=0, metavar="MIB", help="The guest's memory in MiB.")
@click.option("--kernel", default="", help="The guest kernel's version, as uname -r prints it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def targets(
    guest: str,
    hosts: tuple[str, ...],
    translate: bool,
    placement: str | None,
    memory: int,
    kernel: str,
    as_json: bool,
) -> int:
    """Tell which of the HOSTS could take GUEST, best first, and why each other one cannot.

    GUEST is the CPU that the guest was shown when it booted; CPUs are named as for `isthmus
    check`.  The exit code is 3 if no host can take it.

    \b
    Examples:
      isthmus targets guest.txt hosts/*.txt
      isthmus targets phenom Penryn Opteron_G2 EPYC --memory 512 --translate
    """
    shown, *offers = read_hosts((guest, *hosts))
    covers = covered(translate, placement, avx="avx" in shown.features)
    evidence = GuestEvidence(shown=shown, system="linux", kernel=kernel, memory_mib=memory)
    found = ranked(
        [preflight(shown.name, evidence, shown.name, host, translatable=covers) for host in offers]
    )
    if as_json:
        click.echo(to_json(found, indent=2).decode())
    else:
        for target in found:
            _tell(target)
    return 0 if any(target.takes for target in found) else 3


def _tell(target: Target) -> None:
    if target.takes:
        extra = f", translating {', '.join(target.translates)}" if target.translates else ""
        click.echo(f"{target.host}: yes, {target.warns} warnings{extra}")
        return
    click.echo(f"{target.host}: no")
    for reason in target.reasons:
        click.echo(f"  {reason}")
