"""``isthmus harden``: boot parameters that defend a guest on every host it may move to."""

import click

from isthmus.cli.hosts import read_hosts
from isthmus.divergence.evidence import GuestEvidence
from isthmus.divergence.hardening import Hardening
from isthmus.divergence.hardening import harden as hardening
from isthmus.values import to_json


@click.command(no_args_is_help=True)
@click.argument("guest")
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option("--kernel", default="", help="The guest kernel's version, as uname -r prints it.")
@click.option("--cmdline", default="", help="The guest kernel's command line today.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def harden(guest: str, hosts: tuple[str, ...], kernel: str, cmdline: str, as_json: bool) -> int:
    """Print the kernel parameters that defend a Linux GUEST against the flaws of every HOST.

    GUEST is the CPU that it is shown; CPUs are named as for `isthmus check`.  A guest chooses its
    defences once, at boot, for the CPU it sees.  The exit code is 1 if a flaw stays open that no
    parameter closes.

    \b
    Examples:
      isthmus harden EPYC Skylake-Server
      isthmus harden level.json hosts/*.txt --kernel 6.1.0-18 --json
    """
    shown, *offers = read_hosts((guest, *hosts))
    evidence = GuestEvidence(shown=shown, system="linux", kernel=kernel, command_line=cmdline)
    found = hardening(evidence, offers)
    if as_json:
        click.echo(to_json(found, indent=2).decode())
    else:
        _tell(found)
    return 1 if any(flaw.sure for flaw in found.open) else 0


def _tell(found: Hardening) -> None:
    click.echo(" ".join(found.parameters) or "nothing to add")
    for flaw in found.flaws:
        cure = " ".join(flaw.parameters) or "no parameter closes it"
        unsure = "" if flaw.sure else " (not known; to be safe)"
        click.echo(f"  {flaw.flaw} on {', '.join(flaw.hosts)}: {cure}{unsure}")
        click.echo(f"    {flaw.title}: {flaw.missing}; cost: {flaw.cost}")
