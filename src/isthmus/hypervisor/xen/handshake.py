"""What the two ends of ``xl migrate`` say to each other beside the stream, and in which order.

Source: Xen tools/xl/xl.h and xl_migrate.c (4.14 to 4.20 alike).  The receiver says its banner; the
source sends the guest; the receiver, which holds the whole guest and has not let it run, says
``READY``; the source puts its own copy aside and gives the permission to start; the receiver
starts the guest and reports a status.  0 lets the source destroy its copy; another one, followed by
the receiver's permission to have the guest back, lets it resume.

So whoever holds the way back in his hands holds the switch-over: no copy runs while ``READY`` is
held back, and the source's copy is neither destroyed nor resumed while the report is held back.
"""

import asyncio

from isthmus.errors import HypervisorError

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
YOURS = b"domain is yours, you are cleared to unpause\0"
"""The last three with the NUL that C's sizeof counts."""

FAILED = 3
"""The status that we report for a guest that did not live: libxl's ERROR_FAIL without its sign."""


class Backwards:
    """The way back from a receiver, read message by message."""

    def __init__(self, reader: asyncio.StreamReader, where: str) -> None:
        self._reader = reader
        self._where = where

    async def expect(self, message: bytes) -> None:
        """Read exactly that message.

        :raises HypervisorError: the receiver says something else, or nothing more.
        """
        try:
            said = await self._reader.readexactly(len(message))
        except asyncio.IncompleteReadError:
            raise HypervisorError(f"{self._where}: the receiver ended") from None
        if said != message:
            raise HypervisorError(f"{self._where}: the receiver says {said[:60]!r}")

    async def status(self) -> int:
        """Read the receiver's report whether the guest has started; 0: it has."""
        await self.expect(REPORT)
        try:
            return (await self._reader.readexactly(1))[0]
        except asyncio.IncompleteReadError:
            raise HypervisorError(f"{self._where}: the receiver ended") from None


def started() -> bytes:
    """The report that lets the source destroy its copy."""
    return REPORT + b"\0"


def failed(status: int = FAILED) -> bytes:
    """The report of a failure, with the permission that lets the source resume its copy."""
    return REPORT + bytes([status or FAILED]) + YOURS
