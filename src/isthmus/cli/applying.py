"""``isthmus level --apply``: the level into libvirt's domains, shown first or written."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from isthmus.baseline.level import Baseline
from isthmus.hypervisor.rendering import Rendering
from isthmus.values import Value, to_json

F = TypeVar("F", bound=Callable[..., Any])
FAILED = 1


class Applying(Value, frozen=True):
    """Where the level goes: domains by name at ``uri``, XML files, or all domains there."""

    uri: str | None
    domains: tuple[str, ...]
    files: tuple[Path, ...]
    every: bool


def applying_options(command: F) -> F:
    """The options --apply, --connect, --domain and --all, as one argument ``applying``."""

    @click.option("--apply", "apply_it", is_flag=True, help="Write the level into libvirt domains.")
    @click.option(
        "--connect", "uri", metavar="URI",
        help="With --apply: libvirt's URI, for example qemu:///system [default: virsh's own].",
    )  # fmt: skip
    @click.option(
        "--domain", "domains", multiple=True, metavar="NAME|FILE",
        help="With --apply: this domain, or a file of its XML (with a slash, or .xml).",
    )  # fmt: skip
    @click.option("--all", "every", is_flag=True, help="With --apply: every domain there.")
    @functools.wraps(command)
    def wrapped(
        *,
        apply_it: bool,
        uri: str | None,
        domains: tuple[str, ...],
        every: bool,
        **rest: Any,
    ) -> Any:
        return command(applying=_applying(apply_it, uri, domains, every), **rest)

    return wrapped  # type: ignore[return-value]


def _applying(
    apply_it: bool, uri: str | None, domains: tuple[str, ...], every: bool
) -> Applying | None:
    if not apply_it:
        if uri is not None or domains or every:
            raise click.UsageError("--connect, --domain and --all belong to --apply")
        return None
    if every == bool(domains):
        raise click.UsageError("--apply needs --domain NAME (as often as you like) or --all")
    files = tuple(Path(name) for name in domains if "/" in name or name.endswith(".xml"))
    if uri is not None and files and len(files) == len(domains):
        raise click.UsageError("--connect does not go with files")
    named = tuple(name for name in domains if not ("/" in name or name.endswith(".xml")))
    return Applying(uri=uri, domains=named, files=files, every=every)


def applied(
    applying: Applying, level: Baseline, rendering: Rendering, *, dry_run: bool, as_json: bool
) -> int:
    """Put the level in, or show what would be; the exit code."""
    from isthmus.hypervisor.libvirt.definitions import (
        Applied,
        apply_to_all,
        apply_to_domain,
        apply_to_file,
    )
    from isthmus.hypervisor.libvirt.virsh import Virsh
    from isthmus.places import state_folder

    connection = Virsh(applying.uri)
    keep = state_folder() / "libvirt"

    def in_domain(name: str) -> Applied:
        return apply_to_domain(connection, name, level, keep=keep, write=not dry_run)

    def in_file(name: str) -> Applied:
        return apply_to_file(Path(name), level, write=not dry_run)

    names = connection.names() if applying.every else applying.domains
    outcomes = (
        *apply_to_all(tuple(str(path) for path in applying.files), in_file),
        *apply_to_all(names, in_domain),
    )
    if as_json:
        click.echo(to_json(list(outcomes), indent=2).decode())
    else:
        for outcome in outcomes:
            _tell(outcome, dry_run)
        if any(outcome.difference for outcome in outcomes):
            for note in rendering.notes:
                click.echo(f"- {note}", err=True)
        if not outcomes:
            click.echo("no domain there", err=True)
    return FAILED if any(outcome.problem for outcome in outcomes) else 0


def _tell(outcome: Any, dry_run: bool) -> None:
    if outcome.problem:
        named = outcome.problem.startswith(f"{outcome.domain}:")
        who = "" if named else f"{outcome.domain}: "
        click.echo(f"isthmus: {who}{outcome.problem}", err=True)
        return
    if not outcome.difference:
        click.echo(f"{outcome.domain}: the level is in it already")
    elif dry_run:
        click.echo(outcome.difference, nl=False)
        click.echo(f"{outcome.domain}: would be levelled; {outcome.next_step}", err=True)
    else:
        click.echo(f"{outcome.domain}: levelled; {outcome.next_step}")
        click.echo(f"  before: {outcome.former}; to put it back: {outcome.undo}")
    for note in outcome.notes:
        click.echo(f"  {outcome.domain}: {note}", err=True)
