"""Moves between hosts that are addressed by ``qemu+ssh://``, and the ssh connections dropped.

Each host has a real ssh server; what is killed are the ssh processes that libvirt has started.
"""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from libvirt_world import World, last_record, moved_while

from isthmus.errors import EnvironmentLackError, IsthmusError, RolledBackError
from isthmus.migration import libvirt as mover
from isthmus.migration.phases import Phase
from isthmus.migration.record import MigrationRecord
from isthmus.places import cache_folder
from isthmus.qualification.lab import libvirt_ssh

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def hosts(hosts: World) -> World:
    """Each has a server."""
    try:
        libvirt_ssh.require()
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    libvirt_ssh.serve(hosts.hosts, cache_folder())
    return hosts


@pytest.fixture
def world(world: World) -> World:
    """Its hosts are addressed by ssh."""
    world.uris = libvirt_ssh.addresses(world.hosts)
    return world


def dialled(world: World, *, by_host: str = "") -> list[int]:
    """The ssh processes of connections to the hosts, dialled by this machine or by a host."""
    config = str(libvirt_ssh.folder_of(world.hosts) / "config").encode()
    home = Path(
        f"/proc/{world.hosts[by_host].inside.pid}/ns/pid" if by_host else "/proc/self/ns/pid"
    )
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdecimal()
                and config in (entry / "cmdline").read_bytes().split(b"\0")
                and (entry / "ns/pid").readlink() == home.readlink()
            ):
                found.append(int(entry.name))
    return found


def drop(world: World, *, by_host: str = "") -> None:
    """Kill them."""
    processes = dialled(world, by_host=by_host)
    assert processes
    for process in processes:
        os.kill(process, signal.SIGKILL)


async def settled(world: World, outcome: MigrationRecord | IsthmusError) -> MigrationRecord:
    """Exactly one copy is left and lives, and the record names its host; returns the record."""
    assert isinstance(outcome, MigrationRecord | RolledBackError), outcome
    record = last_record(world)
    (host,) = await world.present()
    assert record.phase is (Phase.COMMITTED if host == "intel" else Phase.ROLLED_BACK)
    await world.one_runs(host)
    return record


def undiallable(world: World, host: str, folder: Path) -> str:
    """An address of ``host`` that serves from outside only: its peer cannot dial it."""
    wrapper = folder / "ssh-from-outside"
    inside = " || ".join(f'[ /run/libvirt -ef "{one.folder}/run" ]' for one in world.hosts.values())
    ssh = libvirt_ssh.folder_of(world.hosts) / "ssh"
    wrapper.write_text(f'#!/bin/sh\nif {inside}; then exit 1; fi\nexec {ssh} "$@"\n')
    wrapper.chmod(0o700)
    return f"qemu+ssh://root@{host}/system?command={wrapper}"


async def test_a_guest_crosses_by_ssh_which_the_hosts_dial_too(world: World) -> None:
    await world.born()
    record = await world.move("amd", "intel", peer="")
    assert record.phase is Phase.COMMITTED
    assert not record.error, "peer to peer: the source's daemon has dialled the destination's"
    await world.one_runs("intel")


@pytest.mark.slow
async def test_a_guest_crosses_by_ssh_where_its_host_cannot_dial_the_other(
    world: World, tmp_path: Path
) -> None:
    await world.born()
    world.uris |= {"intel": undiallable(world, "intel", tmp_path)}
    record = await world.move("amd", "intel", peer="")
    assert record.phase is Phase.COMMITTED
    assert "not peer to peer" in record.error
    await world.one_runs("intel")


@pytest.mark.slow
async def test_our_ssh_is_dropped_while_the_daemons_move_the_guest(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on without us; the connections are made anew and tell how it ended.

    However long it takes: patience runs out only where nothing is sent any more.
    """
    monkeypatch.setattr(mover, "PATIENCE_S", 8.0)
    await world.born()

    async def fault() -> None:
        drop(world)

    record = await settled(world, await moved_while(world, fault))
    assert record.phase is Phase.COMMITTED


@pytest.mark.slow
async def test_the_ssh_between_the_daemons_is_dropped(world: World) -> None:
    await world.born()

    async def fault() -> None:
        drop(world, by_host="amd")

    record = await settled(world, await moved_while(world, fault, peer=""))
    assert record.phase is Phase.ROLLED_BACK
    assert record.error


@pytest.mark.slow
async def test_both_ssh_are_dropped_under_a_move_that_goes_through_us(
    world: World, tmp_path: Path
) -> None:
    await world.born()

    async def fault() -> None:
        drop(world)

    world.uris |= {"intel": undiallable(world, "intel", tmp_path)}
    record = await settled(world, await moved_while(world, fault, peer=""))
    assert record.phase is Phase.ROLLED_BACK
    assert record.error
