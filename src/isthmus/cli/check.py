"""``isthmus check``: what a guest would notice on other hosts, told before any move."""

from collections.abc import Sequence
from pathlib import Path

import click

from isthmus.cli.hosts import read_hosts
from isthmus.cli.placements import covered, translate_options
from isthmus.cli.screen import screen
from isthmus.cpu.features import find
from isthmus.cpu.model import CpuModel
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.finding import Finding, Severity
from isthmus.errors import InputError
from isthmus.migration.preflight import Preflight, preflight
from isthmus.values import Value, read_bytes, to_json

_MARKS = {
    Severity.REFUSE: "refused", Severity.TRANSLATE: "translates", Severity.WARN: "warns",
    Severity.NOTE: "fine",
}  # fmt: skip
_FINE = "fine"
_LIMIT = 1 << 20


class Cell(Value, frozen=True):
    """One move of the matrix: what the worst of its findings means, and the refusing subjects."""

    source: str
    destination: str
    verdict: str
    blocking: tuple[str, ...]


@click.command(no_args_is_help=True)
@click.argument("cpus", metavar="GUEST|HOST...", nargs=-1, required=True)
@click.option("--to", "to", multiple=True, metavar="HOST", help="A host the guest could go to.")
@click.option("--matrix", is_flag=True, help="Judge every ordered pair of the CPUs named.")
@translate_options()
@click.option(
    "--accept-risk", "accepted", multiple=True, metavar="RULE",
    help="Accept a rule's refusal by name (rule, or rule:subject).",
)  # fmt: skip
@click.option("--system", default="linux", show_default=True, help="The guest's operating system.")
@click.option("--kernel", default="", help="The guest kernel's version, as uname -r prints it.")
@click.option("--memory", default=0, metavar="MIB", help="The guest's memory in MiB.")
@click.option(
    "--hypervisor", type=click.Choice(["kvm", "tcg", "xen", "hyper-v", "vmware"]),
    help="What runs guests on the hosts; left out, the most cautious answer.",
)  # fmt: skip
@click.option(
    "--on",
    "runs_on",
    metavar="HOST",
    help="The host it runs on: tells what the guest can use there without having been shown it.",
)
@click.option(
    "--uses", default="", metavar="FEATURE,…", help="All that its programs use, if that is known."
)
@click.option("--cmdline", default="", help="The guest kernel's command line.")
@click.option(
    "--cpuinfo", type=click.Path(path_type=Path), help="The guest's own /proc/cpuinfo (its bugs)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(
    cpus: tuple[str, ...],
    to: tuple[str, ...],
    matrix: bool,
    translate: bool,
    placement: str | None,
    accepted: tuple[str, ...],
    system: str,
    kernel: str,
    memory: int,
    hypervisor: str | None,
    runs_on: str | None,
    uses: str,
    cmdline: str,
    cpuinfo: Path | None,
    as_json: bool,
) -> int:
    """Tell what a guest would notice on other hosts, and whether Isthmus would move it there.

    A CPU is a model of the installed QEMU, or a file of any format that `isthmus cpu show` reads.
    GUEST is the CPU that the guest was shown when it booted.  The rules and their sources are in
    docs/divergences.md.  The exit code is 3 if any move is refused.

    \b
    Examples:
      isthmus check phenom --to Penryn
      isthmus check phenom --to Penryn --translate --memory 512
      isthmus check Haswell --to IvyBridge --placement inside
      isthmus check guest.txt --to host1.txt --to host2.txt --kernel 6.1.0-18 --json
      isthmus check guest.txt --on EPYC --uses sse4a --hypervisor kvm --to Skylake-Server
      isthmus check --matrix EPYC-Milan Icelake-Server Skylake-Server
    """
    options = _Options(
        translate=translate, placement=placement, accepted=accepted, system=system, kernel=kernel,
        memory_mib=memory, hypervisor=hypervisor or "", command_line=cmdline,
        bugs=_bugs(cpuinfo) if cpuinfo else None,
        source=read_hosts((runs_on,))[0] if runs_on else None, uses=_features(uses),
    )  # fmt: skip
    if matrix:
        if to:
            raise InputError("--matrix and --to exclude each other", remedy="name hosts for one")
        return _matrix(read_hosts(cpus), options, as_json)
    if len(cpus) != 1 or not to:
        raise InputError("name one GUEST and at least one --to HOST", remedy="or use --matrix")
    guest, *hosts = read_hosts((*cpus, *to))
    verdicts = [_judge(guest, host, options) for host in hosts]
    if as_json:
        click.echo(b"[" + b",".join(to_json(verdict) for verdict in verdicts) + b"]")
    else:
        asked = options.replace(translate=True)
        for host, verdict in zip(hosts, verdicts, strict=True):
            _tell(verdict, guest)
            if verdict.blocking and not _judge(guest, host, asked).blocking:
                click.echo("translated it may move, as `isthmus migrate` would do: --translate")
    return 3 if any(verdict.blocking for verdict in verdicts) else 0


class _Options(Value, frozen=True):
    translate: bool
    placement: str | None
    accepted: tuple[str, ...]
    system: str
    kernel: str
    memory_mib: int
    hypervisor: str
    command_line: str
    bugs: frozenset[str] | None
    source: CpuModel | None
    uses: frozenset[str] | None


def _judge(guest: CpuModel, host: CpuModel, options: _Options) -> Preflight:
    evidence = GuestEvidence(
        shown=guest, system=options.system, kernel=options.kernel,
        memory_mib=options.memory_mib, command_line=options.command_line, bugs=options.bugs,
        uses=options.uses,
    )  # fmt: skip
    return preflight(
        guest.name,
        evidence,
        guest.name,
        host,
        translatable=covered(options.translate, options.placement, avx="avx" in guest.features),
        accepted=options.accepted,
        hypervisor=options.hypervisor,
        source=options.source,
    )


def _features(words: str) -> frozenset[str] | None:
    """The features named, by their canonical names; None if none is, since nobody has looked."""
    return frozenset(find(word).name for word in words.split(",") if word.strip()) or None


def _bugs(path: Path) -> frozenset[str]:
    text = read_bytes(path)[:_LIMIT].decode("utf-8", "replace")
    for line in text.splitlines():
        key, colon, words = line.partition(":")
        if colon and key.strip() == "bugs":
            return frozenset(words.split())
    raise InputError(f"{path}: no line of bugs in it", remedy="name a guest's /proc/cpuinfo")


def _worst(findings: Sequence[Finding]) -> str:
    if not findings:
        return _FINE
    return _MARKS[max((finding.severity for finding in findings), key=lambda s: s.rank)]


def _cell(guest: CpuModel, host: CpuModel, options: _Options) -> Cell:
    verdict = _judge(guest, host, options)
    refusing = tuple(sorted({finding.subject for finding in verdict.blocking}))
    open_ = [f for f in verdict.findings if refusing or f.severity is not Severity.REFUSE]
    return Cell(
        source=guest.name, destination=host.name, verdict=_worst(open_), blocking=refusing
    )  # fmt: skip


def _matrix(hosts: Sequence[CpuModel], options: _Options, as_json: bool) -> int:
    cells = [_cell(a, b, options) for a in hosts for b in hosts if a is not b]
    if as_json:
        for cell in cells:
            click.echo(to_json(cell).decode())
    else:
        _draw(hosts, cells)
    return 3 if any(cell.blocking for cell in cells) else 0


def _draw(hosts: Sequence[CpuModel], cells: Sequence[Cell]) -> None:
    from rich.table import Table

    table = Table(title="guests booted on (rows) moving to (columns)", title_justify="left")
    table.add_column("")
    for host in hosts:
        table.add_column(host.name, overflow="fold")
    found = {(cell.source, cell.destination): cell for cell in cells}
    for guest in hosts:
        row = [found.get((guest.name, host.name)) for host in hosts]
        table.add_row(guest.name, *(_words(cell) for cell in row))
    screen().print(table)


def _words(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.verdict} ({len(cell.blocking)})" if cell.blocking else cell.verdict


def _tell(verdict: Preflight, guest: CpuModel) -> None:
    word = "refused" if verdict.blocking else "may move"
    click.echo(f"{guest.name} to {verdict.destination_host}: {word}")
    order = sorted(verdict.findings, key=lambda f: (-f.severity.rank, f.rule, f.subject))
    for finding in order:
        unsure = "" if finding.sure else " (not known; to be safe)"
        click.echo(f"  {finding.severity.value:9} {finding.subject} [{finding.rule}]{unsure}")
        click.echo(f"            {finding.notice}")
        if finding.severity is not Severity.NOTE:
            click.echo(f"            remedy: {finding.remedy}")
