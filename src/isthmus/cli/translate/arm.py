"""`isthmus translate attach` and `detach`: the translator of a guest that runs where it is."""

import math

import click

from isthmus.cli import lab
from isthmus.errors import InputError


def warn_share_option(command: lab.F) -> lab.F:
    """The option --warn-share, in percent; None where it is left out."""
    return click.option(
        "--warn-share",
        type=click.FloatRange(0, 100, min_open=True),
        metavar="PERCENT",
        help="Warn when translation takes more of a vCPU [default: as before, first 5].",
    )(command)


def share(percent: float | None) -> float | None:
    """The share (0 to 1) that an option in percent means."""
    if percent is not None and math.isnan(percent):  # it passes every range
        raise InputError("--warn-share nan: not a number", remedy="give a percentage, such as 5")
    return None if percent is None else percent / 100


@click.command()
@click.argument("guest")
@warn_share_option
@lab.qemu_option
@lab.json_option
def attach(guest: str, warn_share: float | None, qemu: str, as_json: bool) -> None:
    """Arm the translator on a GUEST of this machine that runs; it stands still for a moment.

    It is armed outside the guest, by QEMU's debug stub.  A translator that was left behind, or has
    died, is taken over.  Exit code 3: the guest has one, or a module in its kernel does the work.

    \b
    Examples:
      isthmus translate attach old
      isthmus translate attach old --warn-share 20 --json
    """
    from isthmus.migration import arming
    from isthmus.values import to_json

    warn = share(warn_share)

    async def work() -> arming.Attached:
        known = lab.store().read(guest)
        hosts = await lab.hosts(qemu, known.spec.accelerator, among=(known.host,))
        return await arming.attach(hosts, guest, warn_share=warn)

    done = lab.run(work())
    if as_json:
        click.echo(to_json(done))
        return
    click.echo(f"{guest}: {done.translation.words}")
    click.echo(f"  #UD handler at {done.entry:#x}, armed in {done.took_ms:.0f} ms")
    if not done.translation.features:
        click.echo("  its host lacks nothing that could be translated: only its own #UDs stop it")
    if done.missing:
        click.echo(
            f"  not covered here, and refused by `isthmus check`: {', '.join(done.missing)}",
            err=True,
        )


@click.command()
@click.argument("guest")
@click.option("--yes", is_flag=True, help="Also where the guest uses what its host lacks.")
@lab.json_option
def detach(guest: str, yes: bool, as_json: bool) -> None:
    """Take the translator away from a GUEST, which goes on without.

    A guest whose host lacks what it uses would die at the next such instruction; that is refused
    (exit code 3) without --yes.

    \b
    Examples:
      isthmus translate detach old
      isthmus translate detach old --yes
    """
    from isthmus.migration import arming
    from isthmus.values import to_json

    report = lab.run(arming.detach(lab.store(), guest, force=yes))
    if as_json:
        click.echo(to_json(report))
        return
    count = sum(report.status.translated.values()) if report.status else 0
    click.echo(f"{guest} goes on without a translator; {count} instructions had been translated")
