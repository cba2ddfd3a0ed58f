"""Two libvirt hosts for each file of tests, and for each test the guest ``g``, not yet born."""

from collections.abc import AsyncIterator, Iterator

import pytest
from libvirt_world import World, guest_of_a_test, hosts_of_a_module


@pytest.fixture(scope="module")
def hosts() -> Iterator[World]:
    """Both hosts."""
    with hosts_of_a_module() as world:
        yield world


@pytest.fixture
async def world(hosts: World) -> AsyncIterator[World]:
    """The hosts, without a guest before and after."""
    async with guest_of_a_test(hosts) as world:
        yield world
