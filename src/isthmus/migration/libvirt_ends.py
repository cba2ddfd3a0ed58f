"""The two ends of libvirt's own move: each copy of the guest, as its daemon knows it.

libvirt tells a state and a reason for it (libvirt-domain.h).  By postcopy the guest runs at the
destination before all its memory is there: then neither copy is whole, though libvirt calls one of
them running.
"""

import contextlib
from typing import Any

from isthmus.errors import HypervisorError
from isthmus.hypervisor.libvirt.connection import (
    Connection,
    LibvirtError,
    binding,
    call,
    open_connection,
)
from isthmus.migration.decision import Copy
from isthmus.migration.phases import Phase
from isthmus.migration.record import Side


def reached(phase: Phase, source: Copy, destination: Copy, *, kept: bool) -> Phase:
    """How far a move has come, by what both daemons say; ``phase`` is the journal's.

    The journal has to say ``starting`` before libvirt is told to move.  But libvirt lets the source
    run, or leaves it as somebody has paused it (``kept``), only where the destination has not run;
    and where that is gone, or has not loaded everything, it never will.
    """
    never = destination in {Copy.DEAD, Copy.PARTIAL}
    return Phase.MOVING if never and (source is Copy.RUNNING or kept) else phase


def _split_here() -> frozenset[tuple[int, int]]:
    """Libvirt's words, state and reason, for a source whose memory follows by postcopy."""
    libvirt = binding()
    return frozenset(
        (libvirt.VIR_DOMAIN_PAUSED, reason)
        for reason in (
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
            libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
        )
    )


def _split_there() -> frozenset[tuple[int, int]]:
    """Libvirt's words for a destination that runs before its memory is all there."""
    libvirt = binding()
    return _split_here() | {
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
    }


def broken() -> frozenset[tuple[int, int]]:
    """Libvirt's words for a source whose postcopy has broken: nothing goes on by itself."""
    libvirt = binding()
    return frozenset({(libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)})


def is_split(source: tuple[int, int], destination: Copy, there: tuple[int, ...]) -> bool:
    """Whether the guest has gone by postcopy and each copy lacks some of its memory.

    :param source: libvirt's state and reason of it; ``there`` those of the destination, whose
        word counts where it runs: with another reason all its memory has come.
    """
    return there in _split_there() or (source in _split_here() and destination is not Copy.RUNNING)


class End:
    """One copy of the guest, as its daemon knows it."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """The connection, opened again where it was lost.

        :raises DaemonGoneError: nobody answers.
        """
        if self._connection is not None:
            with contextlib.suppress(LibvirtError):
                if await call(self._connection.handle.isAlive):
                    return self._connection
            await self.close()
        self._connection = await open_connection(self.side.address)
        return self._connection

    async def domain(self) -> Any | None:
        """The domain, None where the daemon has none; raises :class:`DaemonGoneError`."""
        return await (await self.connection()).find(self.side.domain)

    async def told(self) -> tuple[Copy, int, int]:
        """The state of this copy, with libvirt's own words for it: state and reason."""
        libvirt = binding()
        try:
            domain = await self.domain()
            if domain is None:
                return Copy.DEAD, libvirt.VIR_DOMAIN_NOSTATE, 0
            state, reason = await call(domain.state)
        except LibvirtError as error:  # only one that has gone meanwhile is known to be dead
            gone = error.code == libvirt.VIR_ERR_NO_DOMAIN
            return Copy.DEAD if gone else Copy.UNREACHABLE, libvirt.VIR_DOMAIN_NOSTATE, 0
        return self._copy(state, reason), state, reason

    async def state(self) -> Copy:
        """The state of this copy."""
        return (await self.told())[0]

    def _copy(self, state: int, reason: int) -> Copy:
        libvirt = binding()
        if (state, reason) in _split_here():  # some of its memory has gone on ahead
            return Copy.PARTIAL
        if state in {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED}:
            return Copy.RUNNING
        if state in {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}:
            return Copy.HELD
        return Copy.DEAD

    async def destroy(self) -> None:
        """End this copy for good, and its definition with it if the other has one.

        :raises HypervisorError: libvirt does not end it.
        """
        domain = await self.domain()
        if domain is None:
            return
        with contextlib.suppress(LibvirtError):
            await call(domain.destroy)
        if await self.state() is not Copy.DEAD:
            raise HypervisorError(f"{self.side.address}: that copy does not end")

    async def resume(self) -> None:
        """Let this copy run.

        :raises HypervisorError: libvirt does not.
        """
        domain = await self.domain()
        if domain is None:
            raise HypervisorError(f"{self.side.address}: there is no such guest any more")
        await call(domain.resume)

    async def close(self) -> None:
        """Let go of the connection; changes nothing."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class DestinationEnd(End):
    def _copy(self, state: int, reason: int) -> Copy:
        libvirt = binding()
        if (state, reason) in {
            (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
            *_split_there(),
        }:
            return Copy.PARTIAL
        return super()._copy(state, reason)
