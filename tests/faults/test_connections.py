"""Cut and false connections, a full disk, things that are missing: one clear error, one guest."""

import asyncio
import contextlib
import subprocess
from pathlib import Path
from typing import Self

import msgspec
import pytest

from isthmus.errors import EnvironmentLackError, InputError, IsthmusError, RolledBackError
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.hypervisor.qemu.monitor import Monitor, MonitorGoneError
from isthmus.migration.hosts import Hosts
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase

pytestmark = pytest.mark.lab


class Proxy:
    """Stands between a monitor's socket and its clients, and can cut them off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.real = path.with_name("real.sock")
        self.writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self.path.rename(self.real)
        self.server = await asyncio.start_unix_server(self.serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self.server.close()
        self.path.unlink(missing_ok=True)
        self.real.rename(self.path)

    async def serve(self, reader, writer) -> None:
        there_reader, there_writer = await asyncio.open_unix_connection(str(self.real))
        self.writers += [writer, there_writer]
        pumps = [self.pump(reader, there_writer), self.pump(there_reader, writer)]
        await asyncio.gather(*pumps, return_exceptions=True)

    async def pump(self, reader, writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


async def test_the_sources_monitor_is_cut(world) -> None:
    guest = await world.born()
    async with Proxy(guest.process.qmp) as proxy:

        async def checkpoint(phase: Phase) -> None:
            if phase is Phase.MOVING:
                asyncio.get_running_loop().call_later(0.6, proxy.cut)

        with pytest.raises(RolledBackError):
            await world.hosts.move(
                "g", "Penryn", Options(bandwidth=40 << 20), checkpoint=checkpoint
            )
        await world.one_runs(guest)
    assert world.store.read("g").host == "phenom"


async def test_the_disk_is_full_for_the_record(world, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", small], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        guest = await world.born()
        world.store.journals = small / "migrations"
        with pytest.raises(EnvironmentLackError, match="no space for the record"):
            await world.hosts.move("g", "Penryn", Options())
        await world.one_runs(guest)
    finally:
        subprocess.run(["umount", small], check=True)


async def test_the_record_fails_during_the_move(world, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of the record breaks while the guest is moving: the source goes on."""
    guest = await world.born()

    def broken(_: int) -> None:
        raise OSError(28, "No space left on device")

    async def checkpoint(phase: Phase) -> None:
        if phase is Phase.MOVING:
            monkeypatch.setattr("os.fdatasync", broken)

    with pytest.raises(RolledBackError, match="No space left"):
        await world.hosts.move("g", "Penryn", Options(), checkpoint=checkpoint)
    monkeypatch.undo()
    await world.one_runs(guest)


async def test_a_wrong_cpu_model(world) -> None:
    guest = await world.born()
    with pytest.raises(InputError, match="Pentium99"):
        await world.hosts.move("g", "Pentium99", Options())
    await world.one_runs(guest)


async def test_qemu_is_missing(world) -> None:
    with pytest.raises(EnvironmentLackError, match="no such program"):
        find_qemu("/no/such/qemu")
    guest = await world.born()
    gone = msgspec.structs.replace(guest.spec, qemu=Path("/no/such/qemu"))
    world.store.write(msgspec.structs.replace(guest, spec=gone))
    with pytest.raises(RolledBackError, match="/no/such/qemu"):
        await world.hosts.move("g", "Penryn", Options())
    await world.one_runs(guest)


@pytest.mark.parametrize("greeting", [b"", b"220 mail ready\r\n", b'{"QMP": 1}\n', b"\xff" * 4096])
async def test_a_socket_that_is_no_qmp(tmp_path: Path, greeting: bytes) -> None:
    async def serve(reader, writer) -> None:
        writer.write(greeting)
        await reader.read()
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(serve, str(path)):
        with pytest.raises(MonitorGoneError) as caught:
            await Monitor.connect(path, timeout=1)
    assert "\n" not in str(caught.value)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(MonitorGoneError):
        await Monitor.connect(tmp_path / "nothing")


async def test_two_movers_at_once(world) -> None:
    guest = await world.born()
    store = GuestStore(world.folder / "state", world.folder / "run")
    other = Hosts(world.hosts.qemu, world.hosts.accelerator, world.hosts.cpus, store)
    refused = []

    async def checkpoint(phase: Phase) -> None:
        if phase is Phase.MOVING:
            with pytest.raises(IsthmusError, match="another process"):
                await other.move("g", "Penryn", Options())
            refused.append(phase)

    await world.hosts.move("g", "Penryn", Options(), checkpoint=checkpoint)
    assert refused
    await world.one_runs(guest)
