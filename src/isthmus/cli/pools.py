"""The pool's file, for ``isthmus level --pool``: written whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

import click

from isthmus.baseline.pool import Joining, Pool, Raising, join, raised, ways
from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.values import read_value, to_json
from isthmus.whole_file import write_whole

REFUSED = 3


def stored(file: Path, pool: Pool, *, dry_run: bool, new: bool = False) -> None:
    """Write the pool's file; a reader finds the old one or the new one, never a part.

    :param new: refuse to replace a file.
    :raises InputError: it exists already, or cannot be written.
    """
    if new and file.exists():
        raise InputError(
            f"{file}: exists already", remedy="use --join and --raise to change it, or remove it"
        )
    if dry_run:
        return
    try:
        write_whole(file, to_json(pool, indent=1) + b"\n")
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror or error}", remedy="name a place that can be written"
        ) from error


def joined(file: Path, host: CpuModel, *, dry_run: bool, as_json: bool) -> int:
    """``--join``: the exit code."""
    pool = read_value(file, Pool)
    joining = join(pool, host)
    if not joining.obstacles:
        stored(file, joining.pool, dry_run=dry_run)
    if as_json:
        click.echo(to_json(joining, indent=2).decode())
    else:
        click.echo("\n".join(_told_joining(joining, pool)))
    return REFUSED if joining.obstacles else 0


def _told_joining(joining: Joining, pool: Pool) -> list[str]:
    if not joining.obstacles:
        count = len(joining.pool.hosts)
        return [f"{joining.host} joins {pool.name}: {count} hosts, level {pool.version} as it was"]
    lines = [f"{joining.host} would lower {pool.name} and may not join:"]
    return lines + [f"  {obstacle}" for obstacle in joining.obstacles]


def raised_by(
    file: Path, leave: Sequence[str], guests: Sequence[str], *, dry_run: bool, as_json: bool
) -> int:
    """``--raise``: the exit code."""
    pool = read_value(file, Pool)
    raising = raised(pool, leave, dict(_guest(text) for text in guests))
    if leave or raising.wins:
        stored(file, raising.pool, dry_run=dry_run)
    if as_json:
        click.echo(to_json(raising, indent=2).decode())
    else:
        click.echo("\n".join(_told_raising(raising, pool)))
    return 0


def _guest(text: str) -> tuple[str, int]:
    name, _, version = text.rpartition("=")
    if not name or not version.isdecimal():
        raise click.UsageError(f"--guest {text}: write NAME=VERSION, for example web1=1")
    return name, int(version)


def _told_raising(raising: Raising, pool: Pool) -> list[str]:
    who = f"without {', '.join(raising.without)}" if raising.without else "as it is"
    if not raising.wins:
        lines = [f"{pool.name} {who}: wins nothing"]
    else:
        versions = f"level {pool.version} becomes {raising.pool.version}"
        lines = [
            f"{pool.name} {who}: wins {' '.join(raising.wins)}",
            f"  {versions}; guests see it when they are powered off and on",
        ]
    if raising.power_cycle:
        lines.append(f"  to power-cycle: {', '.join(raising.power_cycle)}")
    if not raising.without:
        lines += [
            f"  if {', '.join(way.without)} left: {' '.join(way.wins)}" for way in ways(pool)[:10]
        ]
    return lines
