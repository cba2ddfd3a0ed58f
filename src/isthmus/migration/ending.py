"""How a migration whose process was killed is brought to its end: the same for every mover."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Protocol

from isthmus.errors import IsthmusError, RolledBackError
from isthmus.migration.record import Journal, MigrationRecord


class DeadOnArrivalError(IsthmusError):
    """Verification found that the guest does not live on the destination."""


class Run(Protocol):
    """A migration under way, whatever moves its guest."""

    journal: Journal

    async def impose(self, winner: str) -> None:
        """Carry out the operator's decision which copy goes on."""

    async def settle(self, error: BaseException) -> None:
        """Bring a migration that did not go on to an end that is safe."""

    async def close(self) -> None:
        """Let go of both ends and of the journal."""


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Do what must not be left half done; whoever cancels us meanwhile has to wait for it.

    ``asyncio.shield`` alone would go on with it while its caller cleans up below it.

    :raises Exception: what ``work`` raises.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()


async def brought_to_end(run: Run, use: str) -> MigrationRecord:
    """Finish a migration or roll it back, and close it; returns its record.

    :param use: the operator's choice of the copy that goes on: ``source`` or ``destination``.
    :raises UndecidedError: both copies are held for the operator.
    """
    try:
        if not run.journal.record.final and use:
            await run.impose(use)
        elif not run.journal.record.final:
            with contextlib.suppress(RolledBackError):
                await run.settle(IsthmusError("the process that moved the guest was killed"))
        return run.journal.record
    finally:
        await run.close()
