"""The ways in which libvirt can move a guest, each between real daemons, and what they are told.

What QEMU was really told is read from it while it moves.
"""

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from libvirt_certificates import certify, withdraw
from libvirt_world import PATIENCE_S, SLOWLY, World

from isthmus.errors import HypervisorError, RefusedError, RolledBackError
from isthmus.hypervisor.libvirt.connection import call, session
from isthmus.hypervisor.libvirt.passthrough import command
from isthmus.migration.options import Options
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord
from isthmus.qualification.lab.libvirt_guest import Drive
from isthmus.qualification.lab.libvirt_host import LINK, LibvirtHost

pytestmark = pytest.mark.lab

MIB = 1 << 20


class Told(dict[str, object]):
    """QEMU's parameters and capabilities of the move, as they were last seen under way."""


async def watched(
    world: World, source: str, destination: str, **more: object
) -> tuple[MigrationRecord, Told]:
    """Move; meanwhile ask the source's QEMU how it was told to."""
    told = Told()

    async def ask() -> None:
        async with session(world.hosts[source].uri) as connection:
            domain = await connection.domain(world.identity)
            while True:
                with contextlib.suppress(HypervisorError):
                    status = (await command(domain, "query-migrate")).get("status", "none")
                    if status in {"active", "postcopy-active"}:
                        told.update(await command(domain, "query-migrate-parameters"))
                        for one in await command(domain, "query-migrate-capabilities"):
                            told[one["capability"]] = one["state"]
                await asyncio.sleep(0.02)

    asking = asyncio.ensure_future(ask())
    try:
        record = await world.move(source, destination, **more)
    finally:
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, HypervisorError):
            await asking
    assert told, "nobody has seen it move"
    return record, told


class Wire:
    """Listens to the network cable of a host, for words of the guest's memory.

    It tells nothing before it is asked: counts told with each packet would fill the pipe to us
    (an encrypted move has 50,000 packets), and then it would hear no more.
    """

    PROGRAM = """\
import select, socket, sys
ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
ear.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE: miss nothing on a busy machine
ear.bind((sys.argv[1], 0))
print("listening", flush=True)
heard = total = 0
while True:
    ready, _, _ = select.select([ear, sys.stdin], [], [])
    if ear in ready:
        packet = ear.recv(1 << 17)
        total += len(packet)
        heard += packet.count(b"Linux version")
    else:  # asked, and all has been heard
        break
print(total, heard)
"""

    def __init__(self, host: LibvirtHost) -> None:
        self._program = subprocess.Popen(
            ["nsenter", "--target", str(host.inside.pid), "--net", "--",
             sys.executable, "-c", self.PROGRAM, LINK],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._program.stdout is not None
        assert self._program.stdout.readline() == "listening\n"

    def close(self) -> tuple[int, int]:
        """How many bytes went by, and how often the words were among them."""
        said, _ = self._program.communicate(timeout=PATIENCE_S)
        total, heard = said.split()
        return int(total), int(heard)


@pytest.mark.slow
async def test_limits_are_in_effect(world: World) -> None:
    await world.born()
    limits = Options(bandwidth=32 * MIB, downtime_limit_ms=123, still=False)
    record, told = await watched(world, "amd", "intel", options=limits)
    assert record.phase is Phase.COMMITTED
    assert told["max-bandwidth"] == 32 * MIB
    assert told["downtime-limit"] == 123
    assert record.figures is not None and not record.figures.postcopy
    at_least_ms = 1000 * record.figures.moved_bytes / (32 * MIB)
    assert record.figures.total_ms > 0.7 * at_least_ms


@pytest.mark.slow
async def test_several_connections(world: World) -> None:
    await world.born()
    record, told = await watched(world, "amd", "intel", parallel=3, options=SLOWLY)
    assert record.phase is Phase.COMMITTED
    assert told["multifd"] is True
    assert told["multifd-channels"] == 3
    await world.one_runs("intel")


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
async def test_a_definition_goes_along_with_its_guest(world: World, persistent: bool) -> None:
    await world.born(persistent=persistent)
    assert (await world.move("amd", "intel")).phase is Phase.COMMITTED
    async with session(world.hosts["amd"].uri) as home:
        assert await home.find(world.identity) is None
    async with session(world.hosts["intel"].uri) as there:
        domain = await there.domain(world.identity)
        assert bool(await call(domain.isPersistent)) is persistent
    await world.one_runs("intel")


async def test_the_disks_are_copied_too(world: World) -> None:
    """Each host has its own file at that path; the guest writes to it all the time."""
    size, head = 96 * MIB, 64 << 10
    content = hashlib.shake_256(b"a disk").digest(size)
    inside = Path("/var/lib/libvirt/disk.img")
    here, there = (world.hosts[name].folder / "lib" / inside.name for name in ("amd", "intel"))
    here.write_bytes(content)
    with there.open("wb") as empty:  # libvirt makes it only where it belongs to a storage pool
        empty.truncate(size)
    try:
        await world.born(disk=Drive(inside))
        with pytest.raises(RolledBackError, match="without shared storage is unsafe"):
            await world.move("amd", "intel")
        record = await world.move("amd", "intel", copy_storage=True)
        assert record.phase is Phase.COMMITTED
        await world.one_runs("intel")
        left = here.read_bytes()[:head]
        await world.ticks(2)
        assert here.read_bytes()[:head] == left, "nobody writes to the old disk any more"
        await world.gone()
        assert there.read_bytes()[head:] == content[head:]
        assert there.read_bytes()[:head] != left
    finally:
        here.unlink()
        there.unlink()


@pytest.mark.slow
async def test_tls_hides_the_guests_memory(world: World) -> None:
    await world.born()
    wire = Wire(world.hosts["amd"])
    record = await world.move("amd", "intel", options=SLOWLY)
    total, heard = wire.close()
    assert record.phase is Phase.COMMITTED
    assert total > 8 * MIB and heard, "in the clear the memory can be read"

    # libvirt itself says that there are no certificates.
    with pytest.raises(RolledBackError):
        await world.move("intel", "amd", tls=True)
    await world.one_runs("intel")

    certify(world.hosts, world.folder / "ca")
    try:
        wire = Wire(world.hosts["amd"])
        record, told = await watched(world, "intel", "amd", tls=True, options=SLOWLY)
        total, heard = wire.close()
        assert record.phase is Phase.COMMITTED
        assert told["tls-creds"]
        assert total > 8 * MIB and not heard
        await world.one_runs("amd")

        # A destination whose certificate another authority has signed gets nothing.
        certify({"intel": world.hosts["intel"]}, world.folder / "another ca")
        with pytest.raises(RolledBackError):
            await world.move("amd", "intel", tls=True)
        await world.one_runs("amd")
    finally:
        withdraw(world.hosts)


async def test_postcopy_ends_it_and_the_record_says_so(world: World) -> None:
    await world.born()
    limits = Options(bandwidth=16 * MIB)
    record, told = await watched(world, "amd", "intel", postcopy=True, options=limits)
    assert record.phase is Phase.COMMITTED
    assert record.figures is not None and record.figures.postcopy
    assert record.figures.moved_bytes > 8 * MIB and record.figures.total_ms
    assert told["postcopy-ram"] is True
    assert told["max-postcopy-bandwidth"] == 16 * MIB
    await world.one_runs("intel")


@pytest.mark.slow
async def test_a_translated_guest_goes_over_a_network_with_tls_or_by_name_only(
    world: World,
) -> None:
    brief = Options(verify_s=3, bandwidth=8 * MIB)
    await world.born(levelled=False)
    with pytest.raises(RefusedError, match="unencrypted"):
        await world.move("amd", "intel", options=brief)
    assert await world.present() == ["amd"]
    # No certificates: QEMU cannot, and the guest stays.
    with pytest.raises(RolledBackError):
        await world.move("amd", "intel", options=brief, tls=True)
    await world.one_runs("amd")

    certify(world.hosts, world.folder / "ca")
    try:
        wire = Wire(world.hosts["amd"])
        record = await world.move("amd", "intel", options=brief, tls=True)
        total, heard = wire.close()
    finally:
        withdraw(world.hosts)
    assert record.phase is Phase.COMMITTED
    assert record.plan.translation is not None
    assert total > 8 * MIB and not heard
    await world.ticks(3)

    with pytest.raises(RefusedError, match="unencrypted"):
        await world.move("intel", "amd", options=brief)
    wire = Wire(world.hosts["amd"])
    record = await world.move(
        "intel", "amd", options=brief, accepted=("libvirt-translated-in-clear",)
    )
    total, heard = wire.close()
    assert record.phase is Phase.COMMITTED
    assert total > 8 * MIB and heard
    await world.ticks(3)


@pytest.mark.slow
async def test_the_watch_of_a_translated_guest_tells_what_is_translated(world: World) -> None:
    """libvirt calls such a guest paused in each trap; the watch is not misled by that."""
    await world.born(levelled=False)
    with world.migrating("amd", "intel", "--verify", "3", "--watch", "8s", "--json") as command:
        said, complaint = await asyncio.to_thread(command.communicate)
    assert command.returncode == 0, complaint
    moved, watch = (json.loads(line) for line in said.splitlines())
    assert moved["steps"][-1]["phase"] == "committed"
    assert watch["outlook"] == "lives"
    assert watch["translated"] > 0
    assert not watch["warnings"]
    await world.ticks(2)
