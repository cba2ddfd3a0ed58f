from collections.abc import AsyncIterator, Generator

import pytest
from kvm_lab import Lab, hosts_seen
from lab_guests import hosts_of_a_test

from isthmus.migration.hosts import Hosts


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    """No guest yet."""
    async with hosts_of_a_test() as (hosts, _):
        yield hosts


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure on lab hosts goes what these hosts do: it is not seen afterwards."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        report.sections.append(("lab hosts", hosts_seen(lab.run)))
    return report
