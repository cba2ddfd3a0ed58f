"""The file that a guest goes through: its place, what is written there, what is read from it."""

import asyncio
import os
from pathlib import Path
from typing import Any, Self

import pytest

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.hypervisor.qemu import through_file
from isthmus.hypervisor.qemu.stream import StreamFailedError
from isthmus.hypervisor.qemu.through_file import Deposit, Saved, check_place, load, save


class Source:
    """A QEMU that sends ``content`` to the address that it is told to migrate to."""

    def __init__(self, content: bytes, status: str = "completed") -> None:
        self.content = content
        self.status_after = status
        self.capabilities: dict[str, bool] = {}
        self._state = "setup"
        self._sending: asyncio.Task[None] | None = None

    async def execute(self, command: str, arguments: Any = None) -> Any:
        if command == "migrate-set-capabilities":
            self.capabilities |= {
                one["capability"]: one["state"] for one in arguments["capabilities"]
            }
        elif command == "migrate":
            self._sending = asyncio.create_task(self._send(arguments["uri"]))
        elif command == "migrate_cancel":
            self._state = "cancelled"
        elif command == "query-migrate":
            return {"status": self._state}
        return {}

    async def _send(self, uri: str) -> None:
        kind, _, place = uri.partition(":")
        if kind == "unix":
            _, writer = await asyncio.open_unix_connection(place)
        else:
            host, _, port = place.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
        self._state = "active"
        writer.write(self.content)
        await writer.drain()
        writer.close()
        self._state = self.status_after


class Destination:
    """A QEMU that takes what it is sent, as long as it is ``wanted``."""

    def __init__(self, folder: Path, wanted: bytes) -> None:
        self.address = f"unix:{folder / 'in.sock'}"
        self.wanted = wanted
        self.got = b""
        self.state = "inmigrate"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._take, self.address[5:])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.got = await reader.read(-1)
        writer.close()
        if self.got == self.wanted:
            self.state = "paused"

    async def status(self) -> str:
        return self.state

    async def execute(self, _: str) -> Any:
        bad = self.got and self.state == "inmigrate"
        return {"status": "failed" if bad else "active", "error-desc": "Not a migration stream"}


CONTENT = os.urandom(3 << 20)


@pytest.mark.parametrize("listen", ["unix", "tcp"])
async def test_what_is_saved_is_loaded(tmp_path: Path, listen: str) -> None:
    where = f"unix:{tmp_path / 'out.sock'}" if listen == "unix" else "tcp:127.0.0.1:0"
    deposit = Deposit(path=tmp_path / "kept", listen=where)
    source = Source(CONTENT)
    saved = await save(source, deposit)  # type: ignore[arg-type]
    assert deposit.path.read_bytes() == CONTENT
    assert deposit.path.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "out.sock").exists()
    # A file gives no answer: with a return path QEMU would wait for one.
    assert source.capabilities["return-path"] is False
    async with Destination(tmp_path, CONTENT) as destination:
        await load(destination, deposit, destination.address, saved)  # type: ignore[arg-type]
        assert destination.got == CONTENT


async def test_the_source_is_told_where_this_machine_is_for_it(tmp_path: Path) -> None:
    deposit = Deposit(path=tmp_path / "kept", listen="tcp:127.0.0.1:0", gateway="localhost")
    assert (await save(Source(b"state"), deposit)).size == 5  # type: ignore[arg-type]


async def test_a_source_that_gives_up_is_told(tmp_path: Path) -> None:
    deposit = Deposit(path=tmp_path / "kept", listen=f"unix:{tmp_path / 'out.sock'}")
    with pytest.raises(StreamFailedError, match="failed"):
        await save(Source(b"half", "failed"), deposit)  # type: ignore[arg-type]


async def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    deposit = Deposit(path=tmp_path / "no" / "kept", listen=f"unix:{tmp_path / 'out.sock'}")
    with pytest.raises(StreamFailedError, match="No such file"):
        await save(Source(CONTENT, "failed"), deposit)  # type: ignore[arg-type]


@pytest.mark.parametrize("now", [CONTENT[:-1], CONTENT[:-1] + b"\0", b"", None])
async def test_another_file_than_was_written_goes_nowhere(
    tmp_path: Path, now: bytes | None
) -> None:
    deposit = Deposit(path=tmp_path / "kept", listen="")
    deposit.path.write_bytes(CONTENT)
    saved = through_file._measure(deposit.path)
    if now is None:
        deposit.path.unlink()
    else:
        deposit.path.write_bytes(now)
    async with Destination(tmp_path, CONTENT) as destination:
        with pytest.raises(StreamFailedError, match="are not the"):
            await load(destination, deposit, destination.address, saved)  # type: ignore[arg-type]
        assert destination.got == b""


async def test_a_destination_that_does_not_take_it_is_told(tmp_path: Path) -> None:
    deposit = Deposit(path=tmp_path / "kept", listen="")
    deposit.path.write_bytes(CONTENT)
    saved = through_file._measure(deposit.path)
    async with Destination(tmp_path, b"something else") as destination:
        with pytest.raises(StreamFailedError, match="Not a migration stream"):
            await load(destination, deposit, destination.address, saved)  # type: ignore[arg-type]


def test_the_place_is_looked_at_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_place(tmp_path / "new", 16)
    (tmp_path / "old").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("old", "dangling"):
        with pytest.raises(InputError, match="is there already"):
            check_place(tmp_path / name, 16)
    with pytest.raises(InputError, match="cannot be written"):
        check_place(tmp_path / "no" / "new", 16)
    with pytest.raises(EnvironmentLackError, match="MiB are free"):
        check_place(tmp_path / "new", 1 << 40)


def test_the_file_is_removed_and_may_be_gone(tmp_path: Path) -> None:
    deposit = Deposit(path=tmp_path / "kept", listen="")
    deposit.path.touch()
    deposit.remove()
    deposit.remove()
    assert not deposit.path.exists()
    assert Saved(size=0, sha256="") == through_file._measure(deposit.path)
