"""`isthmus translate metrics`: the translators' counters for Prometheus."""

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isthmus.cli import lab
from isthmus.errors import InputError
from isthmus.whole_file import write_whole

if TYPE_CHECKING:
    from isthmus.migration.arming import Report

_LARGEST_PORT = 65535


@click.command()
@click.option(
    "--textfile", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write them there, whole or not at all, for node_exporter's textfile collector.",
)  # fmt: skip
@click.option("--listen", metavar="ADDRESS:PORT", help="Serve them at /metrics until Ctrl-C.")
def metrics(textfile: Path | None, listen: str | None) -> None:
    """Print the translators' counters as Prometheus reads them.

    Only what is translated outside a guest is counted here; a module's counters are in its guest.

    \b
    Examples:
      isthmus translate metrics
      isthmus translate metrics --textfile /var/lib/prometheus/node-exporter/isthmus.prom
      isthmus translate metrics --listen 127.0.0.1:9177
    """
    if textfile is not None and listen is not None:
        raise click.UsageError("--textfile and --listen exclude each other")
    if listen is not None:
        _serve(*_address(listen))
        return
    from isthmus.migration.metrics import exposition

    text = exposition(_reports())
    if textfile is None:
        click.echo(text, nl=False)
    else:
        _write(textfile, text)


def _reports() -> "list[Report]":
    """What every guest's translator says now; one whose file vanishes meanwhile is passed over."""
    from isthmus.migration.arming import look

    async def work() -> "list[Report]":
        store, found = lab.store(), []
        for name in store.names():
            with contextlib.suppress(InputError):
                found.append(await look(store, name))
        return found

    return lab.run(work())


def _write(path: Path, text: bytes) -> None:
    """Replace the file at once: its reader must never see a part (node_exporter's own advice)."""
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", remedy="name a file in a folder to write in"
        ) from error


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > _LARGEST_PORT:
        raise InputError(
            f"{text}: no address to listen at", remedy="write ADDRESS:PORT, such as 127.0.0.1:9177"
        )
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  (":9177", as other exporters)


def _serve(host: str, port: int) -> None:
    from prometheus_client import CollectorRegistry, start_http_server

    from isthmus.migration.metrics import ReportCollector

    registry = CollectorRegistry()
    registry.register(ReportCollector(_reports))
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InputError(
            f"{host}:{port}: {error.strerror or error}", remedy="name another address or port"
        ) from error
    click.echo(f"http://{host}:{server.server_port}/metrics", err=True)
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
