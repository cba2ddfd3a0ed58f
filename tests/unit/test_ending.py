"""What must not be left half done is brought to its end, whoever cancels it."""

import asyncio

import pytest

from isthmus.errors import RolledBackError
from isthmus.migration.ending import to_its_end


async def cancelled_twice(work) -> BaseException | None:
    """Cancel a task that does the work, twice; what came of the task."""
    task = asyncio.create_task(to_its_end(work))
    for _ in range(2):
        await asyncio.sleep(0.02)
        task.cancel()
    await asyncio.wait({task})
    return task.exception()


async def test_work_that_is_cancelled_is_done_before_anybody_goes_on() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0.2)
        done.append(1)

    assert await cancelled_twice(work()) is None
    assert done == [1]


async def test_what_it_came_to_is_told_all_the_same() -> None:
    async def work() -> None:
        await asyncio.sleep(0.2)
        raise RolledBackError("back")

    assert isinstance(await cancelled_twice(work()), RolledBackError)


async def test_without_anybody_interfering() -> None:
    async def work() -> None:
        raise RolledBackError("back")

    with pytest.raises(RolledBackError):
        await to_its_end(work())
