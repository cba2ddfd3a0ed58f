"""Moves between real libvirt daemons, with something breaking in the middle.

After each fault exactly one copy of the guest is left, and the record tells what happened.
"""

import asyncio
import contextlib
import subprocess
from pathlib import Path

import pytest
from libvirt_world import (
    PATIENCE_S,
    World,
    last_record,
    moved_while,
)

from isthmus.errors import HypervisorError, IsthmusError, RolledBackError
from isthmus.hypervisor.libvirt.connection import binding, call, session
from isthmus.migration import hosts as recovery
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord
from isthmus.qualification.lab.libvirt_host import LINK, LibvirtHost

pytestmark = pytest.mark.lab


async def test_the_destinations_daemon_is_killed(world: World) -> None:
    await world.born()
    intel = world.hosts["intel"]

    async def fault() -> None:
        await asyncio.to_thread(intel.kill_daemon)
        await asyncio.sleep(1)
        await asyncio.to_thread(intel.start_daemon)

    outcome = await moved_while(world, fault)
    assert isinstance(outcome, RolledBackError), outcome
    await world.one_runs("amd")
    assert last_record(world).phase is Phase.ROLLED_BACK
    assert last_record(world).error


async def test_the_mover_is_killed_and_the_move_is_brought_to_its_end(world: World) -> None:
    await world.born()
    peer = world.hosts["intel"].peer_uri
    with world.migrating("amd", "intel", "--peer", peer, "--bandwidth", "8") as mover:
        assert mover.stderr is not None
        while (line := await asyncio.to_thread(mover.stderr.readline)) and b"MiB sent" not in line:
            pass
        mover.kill()
    (path,) = recovery.unfinished(world.store)
    assert last_record(world).phase is Phase.STARTING
    done = await recovery.recover(world.store, path)
    # Peer to peer the daemons go on without us.
    assert done.final
    (host,) = await world.running()
    assert done.phase is (Phase.COMMITTED if host == "intel" else Phase.ROLLED_BACK)
    await world.one_runs(host)


@pytest.mark.slow
async def test_the_link_between_the_hosts_is_cut(world: World) -> None:
    await world.born()

    async def fault() -> None:
        await asyncio.to_thread(world.hosts["amd"].link, up=False)

    outcome = await moved_while(world, fault)
    assert isinstance(outcome, RolledBackError), outcome
    await world.one_runs("amd")
    assert last_record(world).phase is Phase.ROLLED_BACK


@pytest.mark.slow
async def test_a_slow_and_lossy_link_is_survived(world: World) -> None:
    await world.born()
    amd = world.hosts["amd"]
    try:
        try:
            worsen(amd)
        except HypervisorError as error:
            pytest.skip(f"this kernel cannot worsen a link: {error}")
        done = await world.move("amd", "intel")
        lost = dropped(amd)
    finally:
        mend(amd)
    assert lost > 0
    assert done.phase is Phase.COMMITTED
    await world.one_runs("intel")


def worsen(host: LibvirtHost) -> None:
    """What the host sends from now on goes at 100 Mbit/s, and one packet of a hundred is lost.

    By what most kernels have (tc-tbf(8), tc-bpf(8)); netem is often left out.  The classic BPF
    program: load a random number (SKF_AD_RANDOM); up to 1 % of 2^32, say TC_ACT_SHOT, else go on.
    """
    host.run(
        "tc", "qdisc", "add", "dev", LINK, "root",
        "tbf", "rate", "100mbit", "burst", "64kb", "latency", "50ms",
    )  # fmt: skip
    host.run("tc", "qdisc", "add", "dev", LINK, "clsact")
    host.run(
        "tc", "filter", "add", "dev", LINK, "egress", "bpf", "direct-action",
        "bytecode", f"4,32 0 0 {0xFFFFF038},37 0 1 {2**32 // 100},6 0 0 {2**32 - 1},6 0 0 2,",
    )  # fmt: skip


def dropped(host: LibvirtHost) -> int:
    """How many packets that program has taken."""
    told = host.run("tc", "-s", "qdisc", "show", "dev", LINK, "clsact").stdout
    return int(told.split("(dropped ")[1].split(",")[0])


def mend(host: LibvirtHost) -> None:
    """Take back what :func:`worsen` did."""
    for what in ("clsact", "root"):
        host.run("tc", "qdisc", "del", "dev", LINK, what, check=False)


@pytest.mark.slow
async def test_the_sources_daemon_is_restarted(world: World) -> None:
    await world.born()
    amd = world.hosts["amd"]

    async def fault() -> None:
        await asyncio.to_thread(amd.kill_daemon)
        await asyncio.sleep(1)
        await asyncio.to_thread(amd.start_daemon)

    outcome = await moved_while(world, fault)
    assert isinstance(outcome, RolledBackError | MigrationRecord), outcome
    (host,) = await world.running()
    await world.one_runs(host)
    assert last_record(world).final
    assert last_record(world).phase is (Phase.COMMITTED if host == "intel" else Phase.ROLLED_BACK)


@pytest.mark.slow
async def test_the_destinations_disk_is_full(world: World) -> None:
    await world.born()
    intel = world.hosts["intel"]
    full = "/var/lib/libvirt/qemu"
    intel.run("mount", "-t", "tmpfs", "-o", "size=4k", "full", full)
    try:
        intel.run("sh", "-c", f"dd if=/dev/zero of={full}/x bs=4k count=2 2>/dev/null; :")
        with pytest.raises(RolledBackError):
            await world.move("amd", "intel")
    finally:
        intel.run("umount", full)
    await world.one_runs("amd")
    assert last_record(world).phase is Phase.ROLLED_BACK


@pytest.mark.slow
async def test_the_guest_is_paused_in_mid_move(world: World) -> None:
    libvirt = binding()
    await world.born()
    outcome = await moved_while(world, lambda: order(world, "amd", "suspend"))
    assert isinstance(outcome, RolledBackError | MigrationRecord), outcome
    assert last_record(world).final
    states = {name: await world.state(name) for name in world.hosts}
    (host,) = [name for name, state in states.items() if state is not None]
    if states[host] == libvirt.VIR_DOMAIN_PAUSED:
        await order(world, host, "resume")
    await world.one_runs(host)


@pytest.mark.slow
async def test_the_guest_is_ended_in_mid_move(world: World) -> None:
    await world.born(persistent=True)
    outcome = await moved_while(world, lambda: order(world, "amd", "destroy"))
    assert isinstance(outcome, IsthmusError), outcome
    await until_nobody_runs(world)
    assert last_record(world).phase is Phase.ROLLED_BACK
    assert "the guest" in last_record(world).error


@pytest.mark.slow
async def test_no_space_for_the_record_leaves_all_as_it_is(world: World, tmp_path: Path) -> None:
    await world.born()
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "small", str(small)], check=True)
    try:
        journals, world.store.journals = world.store.journals, small
        with pytest.raises(IsthmusError, match="nothing was moved"):
            await world.move("amd", "intel")
    finally:
        world.store.journals = journals
        subprocess.run(["umount", str(small)], check=True)
    await world.one_runs("amd")


async def order(world: World, host: str, what: str) -> None:
    """Do to the guest on ``host`` what somebody with virsh would."""
    async with session(world.hosts[host].uri) as connection:
        with contextlib.suppress(HypervisorError):
            await call(getattr(await connection.domain(world.identity), what))


async def until_nobody_runs(world: World) -> None:
    """No copy runs, on neither host, and none comes back."""
    async with asyncio.timeout(PATIENCE_S):
        while await world.running():
            await asyncio.sleep(0.1)
