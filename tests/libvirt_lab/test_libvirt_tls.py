"""Moves between hosts that are addressed by ``qemu+tls://``.

Isthmus runs in the network of a host, as an operator's machine would stand in theirs; the source's
daemon dials the destination's by the same address.
"""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from libvirt_certificates import client, listen
from libvirt_world import World

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(hosts: World) -> World:
    """Each serves TLS."""
    listen(hosts.hosts, hosts.folder / "ca")
    return hosts


@pytest.fixture
def world(world: World) -> Iterator[World]:
    """Its addresses are as before afterwards."""
    plain = dict(world.uris)
    yield world
    world.uris = plain


def address(world: World, certificates: Path) -> None:
    """From now on the command is told addresses with these certificates of a client."""
    for name, host in world.hosts.items():
        world.uris[name] = f"qemu+tls://{host.address}/system?pkipath={certificates}"


async def migrated(world: World, source: str, destination: str, *more: str) -> tuple[int, str, str]:
    """The exit status of the command, and what it printed and complained of."""
    with world.migrating(source, destination, *more, within="amd") as command:
        said, complaint = await asyncio.to_thread(command.communicate)
    return command.returncode, said.decode(), complaint.decode()


async def test_a_guest_goes_there_and_back_between_daemons_that_speak_tls(world: World) -> None:
    await world.born()
    address(world, client(world.folder / "ca", world.folder / "client"))
    for source, destination in (("amd", "intel"), ("intel", "amd")):
        status, said, complaint = await migrated(
            world, source, destination, "--watch", "8s", "--json"
        )
        assert status == 0, complaint
        moved, watch = (json.loads(line) for line in said.splitlines())
        assert moved["steps"][-1]["phase"] == "committed"
        assert "error" not in moved, "peer to peer: the source's daemon has dialled the other's"
        assert watch["outlook"] == "lives"
    await world.one_runs("amd")


async def test_a_client_of_another_authority_gets_nothing(world: World) -> None:
    await world.born()
    address(world, client(world.folder / "another ca", world.folder / "stranger"))
    status, said, complaint = await migrated(world, "amd", "intel")
    assert status != 0 and not said
    assert "Traceback" not in complaint
    assert "certificate" in complaint
    await world.one_runs("amd")
