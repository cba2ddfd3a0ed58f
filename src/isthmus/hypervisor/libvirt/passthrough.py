"""QEMU's own monitor, through libvirt: for what libvirt has no call.

libvirt marks a domain that was spoken to in this way (its log says "tainted: custom-monitor");
what is only read, or put back, does no harm, and the mark goes with the process (libvirt:
docs/drvqemu.rst, "Pass-through of QEMU command-line arguments" and virsh's qemu-monitor-command).
"""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from qemu.qmp import EventListener, Message

from isthmus.errors import HypervisorError
from isthmus.hypervisor.libvirt.connection import (
    Connection,
    LibvirtError,
    binding,
    call,
    qemu_binding,
)
from isthmus.hypervisor.qemu.monitor import (
    COMMAND_TIMEOUT_S,
    CommandRefusedError,
    Monitor,
    MonitorGoneError,
)

MAX_ANSWER = 16 << 20


async def command(domain: Any, name: str, arguments: dict[str, object] | None = None) -> Any:
    """Run one QMP command in the domain's QEMU; returns its ``return`` value.

    :raises CommandRefusedError: QEMU answered with an error.
    :raises LibvirtError: libvirt did not pass it on.
    """
    order: dict[str, object] = {"execute": name}
    if arguments:
        order["arguments"] = arguments
    text = await call(
        qemu_binding().qemuMonitorCommand, domain, msgspec.json.encode(order).decode(), 0
    )
    try:
        answer = msgspec.json.decode(text[:MAX_ANSWER])
    except msgspec.DecodeError as error:
        raise HypervisorError(f"{name}: an answer that is no JSON: {error}") from error
    if not isinstance(answer, dict) or "error" in answer:
        described = answer.get("error") if isinstance(answer, dict) else None
        reason = described.get("desc", "") if isinstance(described, dict) else ""
        raise CommandRefusedError(name, str(reason) or "an answer of a strange form")
    return answer.get("return")


_command = command


class DomainMonitor(Monitor):
    """A domain's monitor, spoken to through libvirt: what :class:`Monitor` is for a socket."""

    def __init__(self, connection: Connection, domain: Any) -> None:
        self.path = Path(connection.uri)
        self._connection = connection
        self._domain = domain

    async def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout: float = COMMAND_TIMEOUT_S,
    ) -> Any:
        """Run one QMP command and return its ``return`` value."""
        try:
            async with asyncio.timeout(timeout):
                return await _command(self._domain, command, arguments)
        except TimeoutError as error:
            raise MonitorGoneError(f"{self.path}: no answer to {command}") from error
        except LibvirtError as error:
            raise MonitorGoneError(f"{self.path}: {command}: {error.message}") from error

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[EventListener]:
        """Collect the named events for the length of a ``with`` block."""
        listener = EventListener()
        loop = asyncio.get_running_loop()

        def tell(
            _connection: Any, _domain: Any, event: str, seconds: int, micros: int,
            details: str | None, _opaque: Any,
        ) -> None:  # fmt: skip
            message: dict[str, object] = {
                "event": event,
                "timestamp": {"seconds": seconds, "microseconds": micros},
            }
            if details:
                message["data"] = msgspec.json.decode(details)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                asyncio.run_coroutine_threadsafe(listener.put(Message(message)), loop)

        qemu = qemu_binding()
        handle = self._connection.handle
        numbers = [
            qemu.qemuMonitorEventRegister(handle, self._domain, name, tell, None) for name in names
        ]
        try:
            yield listener
        finally:
            for number in numbers:
                with contextlib.suppress(binding().libvirtError):
                    qemu.qemuMonitorEventDeregister(handle, number)

    async def close(self) -> None:
        """Let go; the connection is somebody else's."""
