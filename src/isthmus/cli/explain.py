"""`isthmus explain`: what an error message about CPUs or a move means, and what to do."""

import sys
from pathlib import Path

import click

from isthmus.cli import lab
from isthmus.errors import InputError


@click.command()
@click.argument("text", nargs=-1)
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="PATH",
    help="Read a log or a console; - is the standard input.",
)
@lab.json_option
def explain(text: tuple[str, ...], files: tuple[str, ...], as_json: bool) -> None:
    """Explain what a hypervisor or a guest's kernel said about its CPU.

    Known are messages of QEMU, libvirt, Xen, XenServer, VMware, Hyper-V, KVM and Linux. A guest's
    console is also searched for its death: with the code bytes that the kernel prints, the
    instruction and the feature that it needs are named. Exit code 1: nothing in it is known.

    \b
    Examples:
      isthmus explain "guest CPU doesn't match specification: missing features: pcid"
      isthmus explain --file /var/log/libvirt/qemu/web.log
      xl dmesg | isthmus explain --file - --json
    """
    from isthmus.divergence.messages import explain as explanations
    from isthmus.values import to_json

    content = "\n".join([" ".join(text), *(_read(name) for name in files)])
    if not content.strip():
        raise InputError("nothing to explain", remedy="give a message, or --file PATH")
    found = explanations(content)
    death, instruction = _death(content)
    if as_json:
        click.echo(to_json({"schema": 1, "messages": found, "death": death, "why": instruction}))
    else:
        for number, one in enumerate(found):
            click.echo(f"{'' if number == 0 else chr(10)}{one.line}")
            click.echo(f"  {one.product}: {one.means}")
            click.echo(f"  cause   {one.cause}")
            click.echo(f"  cure    {one.cure}")
            if one.features:
                click.echo(f"  about   {', '.join(one.features)}")
            if one.rules:
                click.echo(f"  rules   {', '.join(one.rules)} (docs/divergences.md)")
            click.echo(f"  source  {one.source}")
        if death:
            click.echo(f"\nthe guest died: {death}")
            if instruction:
                click.echo(f"  {instruction}")
    if not found and not death:
        raise click.exceptions.Exit(_unknown(as_json))


def _unknown(as_json: bool) -> int:
    if not as_json:
        click.echo(
            "no message in it is known; ask isthmus check about the move, and please report the"
            " message with the product's version",
            err=True,
        )
    return 1


def _read(name: str) -> str:
    from isthmus.divergence.messages import MAX_BYTES

    if name == "-":
        data = sys.stdin.buffer.read(16 * MAX_BYTES)[-MAX_BYTES:]
    else:
        path = Path(name)
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - MAX_BYTES))
                data = file.read(MAX_BYTES)
        except OSError as error:
            raise InputError(
                f"{name}: {error.strerror}", remedy="give a log or console that can be read"
            ) from error
    return data.decode("utf-8", "replace")


def _death(content: str) -> tuple[str, str]:
    """The death in a console and the instruction it died of, as far as the console tells."""
    from isthmus.guest.console import find_death
    from isthmus.scan.explain import instruction

    death = find_death(content.encode())
    if death is None:
        return "", ""
    code = death.code[death.offset :]
    if "opcode" not in death.trap or not code:
        return death.headline, ""
    try:
        dead = instruction(code, death.bits)
    except InputError:
        return death.headline, ""
    needs = ", ".join(sorted(dead.features)) or "nothing that is known"
    where = f" at {death.symbol}" if death.symbol else ""
    if dead.deliberate:
        return death.headline, f"{dead.text}{where} faults on purpose: a bug of the program's own"
    return death.headline, f"{dead.text}{where} needs {needs}"
