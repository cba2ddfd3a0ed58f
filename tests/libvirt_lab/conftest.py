"""Two libvirt hosts for each file of tests, and for each test the guest ``g``, not yet born."""

from collections.abc import AsyncIterator, Generator, Iterator

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes what the hosts have said: it is not seen afterwards."""
    report = yield
    world = getattr(item, "funcargs", {}).get("world")
    if report.failed and isinstance(world, World):
        report.sections.append(("libvirt hosts", world.seen()))
    return report
