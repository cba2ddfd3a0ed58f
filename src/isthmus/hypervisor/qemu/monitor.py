"""A QMP monitor of one QEMU: commands, events, and errors in Isthmus's own types.

Thin over the ``qemu.qmp`` library.  A QMP chardev serves one client at a time, and a second one
waits in the backlog without a greeting; so connecting has a timeout, and every QEMU that Isthmus
starts has two monitors: one for whoever moves the guest, one for whoever looks at it.

Example::

    async with Monitor.session(path) as monitor:
        print(await monitor.execute("query-status"))
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError

from isthmus.errors import HypervisorError

# The library logs each failed connection with a traceback; our own error says it in a line.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

CONNECT_TIMEOUT_S = 15.0
COMMAND_TIMEOUT_S = 30.0
NEGOTIATION_TRIES = 8


class MonitorGoneError(HypervisorError):
    """The QMP connection cannot be made, or was lost: QEMU died, or the socket is not QMP."""


class CommandRefusedError(HypervisorError):
    """QEMU answered a command with an error; ``reason`` is QEMU's own text."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"QEMU refused {command}: {reason}")
        self.command = command
        self.reason = reason


class Monitor:
    """One QMP connection.  Make it with :meth:`connect` or :meth:`session`."""

    def __init__(self, client: QMPClient, path: Path) -> None:
        self._client = client
        self.path = path

    @classmethod
    async def connect(cls, path: Path, *, timeout: float = CONNECT_TIMEOUT_S) -> "Monitor":
        """Connect, read the greeting and negotiate capabilities.

        :raises MonitorGoneError: nobody listens, somebody else holds the monitor, or no QMP.
        """
        for attempt in range(NEGOTIATION_TRIES):
            client = QMPClient(path.name)
            try:
                async with asyncio.timeout(timeout):
                    await client.connect(str(path))
            except TimeoutError as error:
                await _let_go(client)
                raise MonitorGoneError(
                    f"{path}: no QMP greeting within {timeout:g} s",
                    remedy="another client may hold this monitor, or it is not a QMP socket",
                ) from error
            except (QMPError, OSError, ValueError) as error:
                await _let_go(client)
                # A guest under translation sends events by the hundred, and one may come before
                # the answer to qmp_capabilities; the library takes that for a wrong answer.
                if _in_negotiation(error) and attempt < NEGOTIATION_TRIES - 1:
                    await asyncio.sleep(0.02)
                    continue
                raise MonitorGoneError(
                    f"{path}: not a QMP monitor that answers ({_innermost(error)})",
                    remedy="name the UNIX socket given to QEMU's -qmp option",
                ) from error
            return cls(client, path)
        raise AssertionError("the last try returns or raises")

    @classmethod
    @contextlib.asynccontextmanager
    async def session(
        cls, path: Path, *, timeout: float = CONNECT_TIMEOUT_S
    ) -> AsyncIterator["Monitor"]:
        """Connect for the length of a ``with`` block."""
        monitor = await cls.connect(path, timeout=timeout)
        try:
            yield monitor
        finally:
            await monitor.close()

    async def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout: float = COMMAND_TIMEOUT_S,
    ) -> Any:
        """Run one QMP command and return its ``return`` value.

        :raises CommandRefusedError: QEMU answered with an error.
        :raises MonitorGoneError: the connection was lost, or no answer within ``timeout`` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise CommandRefusedError(command, str(error)) from error
        except TimeoutError as error:
            raise MonitorGoneError(f"{self.path}: no answer to {command}") from error
        except (ExecInterruptedError, QMPError, OSError) as error:
            raise MonitorGoneError(
                f"{self.path}: QEMU went away during {command} ({_innermost(error)})"
            ) from error

    async def status(self) -> str:
        """QEMU's run state: ``running``, ``paused``, ``inmigrate``, ``postmigrate`` and so on."""
        answer = await self.execute("query-status")
        return str(answer["status"])

    async def human(self, command_line: str) -> str:
        """Run a command of the human monitor and return its text."""
        answer = await self.execute("human-monitor-command", {"command-line": command_line})
        return str(answer)

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[EventListener]:
        """Collect the named events for the length of a ``with`` block."""
        with self._client.listener(set(names)) as listener:
            yield listener

    async def close(self) -> None:
        """Disconnect; an already broken connection is no error here."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await self._client.disconnect()


async def _let_go(client: QMPClient) -> None:
    with contextlib.suppress(Exception):
        await client.disconnect()


def _in_negotiation(error: BaseException) -> bool:
    """Whether the greeting came but the negotiation after it went wrong."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, AssertionError):
            return True
        below = below.__cause__ or getattr(below, "exc", None)
    return False


def _innermost(error: BaseException) -> str:
    while True:
        below = error.__cause__ or getattr(error, "exc", None)
        if not isinstance(below, BaseException):
            text = str(error).strip().splitlines()
            return text[0] if text else type(error).__name__
        error = below
