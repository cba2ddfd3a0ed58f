from collections.abc import AsyncIterator

import pytest
from lab_guests import hosts_of_a_test

from isthmus.migration.hosts import Hosts


@pytest.fixture
async def hosts() -> AsyncIterator[Hosts]:
    """No guest yet."""
    async with hosts_of_a_test() as (hosts, _):
        yield hosts
