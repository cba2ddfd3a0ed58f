"""``isthmus inventory``: what runs on libvirt's hosts, and what stands in the way of moving it."""

import click

from isthmus.cli.hosts import is_uri
from isthmus.cli.screen import screen
from isthmus.divergence.finding import Finding, Severity
from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.inventory import (
    Inventory,
    Resident,
    cpu_words,
    host_name,
    read_libvirt_host,
    take_inventory,
)
from isthmus.hypervisor.libvirt.relations import Move
from isthmus.hypervisor.libvirt.rules import domain_findings
from isthmus.hypervisor.libvirt.virsh import Virsh
from isthmus.values import Value, to_json

REFUSED = 3


class Judged(Value, frozen=True):
    """What stands in the way of moving one domain of an inventory to a host."""

    domain: str
    there: str
    findings: tuple[Finding, ...]


class Answer(Value, frozen=True):
    """What ``--json`` prints."""

    inventories: tuple[Inventory, ...]
    judged: tuple[Judged, ...] = ()
    schema: int = 1


@click.command(no_args_is_help=True)
@click.argument("uris", metavar="URI...", nargs=-1, required=True)
@click.option("--to", "to", metavar="URI", help="Tell what stands in the way of moving there.")
@click.option(
    "--shared", multiple=True, metavar="FOLDER", help="With --to: both hosts see this folder."
)
@click.option(
    "--copy-storage", is_flag=True, help="With --to: disks are copied (virsh --copy-storage-all)."
)
@click.option("--tls", is_flag=True, help="With --to: the stream is to be encrypted (virsh --tls).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inventory(
    uris: tuple[str, ...],
    to: str | None,
    shared: tuple[str, ...],
    copy_storage: bool,
    tls: bool,
    as_json: bool,
) -> int:
    """List the CPU and the domains of libvirt's hosts, by their URIs.

    With --to it tells for each domain what of its definition, storage and devices stands in the
    way of a move there (exit code 3 if any is refused); what the guest would notice of the other
    CPU is told by isthmus check.

    \b
    Examples:
      isthmus inventory qemu:///system
      isthmus inventory qemu+ssh://amd1/system --to qemu+ssh://intel1/system --shared /srv/images
      isthmus inventory qemu+ssh://amd1/system qemu+ssh://amd2/system --json
    """
    for uri in (*uris, *((to,) if to else ())):
        if not is_uri(uri):
            raise InputError(f"{uri}: not a URI", remedy="for example qemu+ssh://HOST/system")
    found = tuple(take_inventory(Virsh(uri), name=host_name(uri)) for uri in uris)
    judged: tuple[Judged, ...] = ()
    if to:
        kinds = {resident.defined.kind for one in found for resident in one.domains}
        kind = kinds.pop() if len(kinds) == 1 else ""
        there = read_libvirt_host(Virsh(to), host_name(to), kind=kind)
        move = Move(shared=frozenset(shared), copies_all=copy_storage, tls=tls)
        judged = tuple(
            _judged(resident, one.host, there, move) for one in found for resident in one.domains
        )
    if as_json:
        click.echo(to_json(Answer(inventories=found, judged=judged), indent=2).decode())
    else:
        for one in found:
            _list(one)
        for verdict in judged:
            _tell(verdict)
    refused = any(f.severity is Severity.REFUSE for verdict in judged for f in verdict.findings)
    return REFUSED if refused else 0


def _judged(resident: Resident, here: LibvirtHost, there: LibvirtHost, move: Move) -> Judged:
    """What is told of the definition, and of what the running guest has beyond it."""
    found = list(domain_findings(resident.defined, here, there, move))
    if resident.running is not None:
        known = {(finding.rule, finding.subject) for finding in found}
        found += [
            finding
            for finding in domain_findings(resident.running, here, there, move)
            if (finding.rule, finding.subject) not in known
        ]
    order = sorted(found, key=lambda finding: -finding.severity.rank)
    return Judged(domain=resident.defined.name, there=there.name, findings=tuple(order))


def _list(one: Inventory) -> None:
    from rich.table import Table
    from rich.text import Text

    cpu = one.host.cpu
    told = f"{cpu.vendor}, {len(cpu.features)} features" if cpu else "; ".join(one.host.unknown)
    console = screen()
    table = Table(title=Text(f"{one.host.name}: {told or 'CPU not known'}"), title_justify="left")
    for column in ("domain", "state", "CPU", "machine", "MiB", "vCPUs"):
        table.add_column(column, overflow="fold")
    for resident in one.domains:
        domain = resident.defined
        table.add_row(
            *map(
                Text,
                (
                    domain.name,
                    "runs" if resident.running else "off",
                    cpu_words(domain),
                    domain.machine,
                    str(domain.memory_mib),
                    str(domain.vcpus),
                ),
            )
        )
    console.print(table)
    for problem in one.problems:
        click.echo(f"isthmus: {problem}", err=True)


def _tell(verdict: Judged) -> None:
    worst = max((finding.severity.rank for finding in verdict.findings), default=0)
    word = "refused" if worst == Severity.REFUSE.rank else "nothing stands in the way"
    if 0 < worst < Severity.REFUSE.rank:
        word = "may move"
    click.echo(f"{verdict.domain} to {verdict.there}: {word}")
    for finding in verdict.findings:
        unsure = "" if finding.sure else " (not known; to be safe)"
        click.echo(f"  {finding.severity.value:9} {finding.subject} [{finding.rule}]{unsure}")
        click.echo(f"            {finding.notice}")
        if finding.severity is not Severity.NOTE:
            click.echo(f"            remedy: {finding.remedy}")
