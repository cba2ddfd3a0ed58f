"""Look at a running guest's tables without stopping it, through a monitor (QMP) of QEMU's.

A look through the debug stub has to stop the guest, and a QMP ``stop`` by an operator that comes
while it stands so is lost: QEMU takes it for done.  A monitor reads the registers and the memory
of a vCPU that runs (target/i386/monitor.c; under KVM the vCPU is asked for them for an instant).

Each look is a connection of its own: a monitor that stays connected would be sent two events by
each trap.  Nobody else is kept out for longer than a look takes, some milliseconds; and whoever
holds the monitor only puts the look off.
"""

import asyncio
import contextlib
import re
from pathlib import Path

import msgspec

from isthmus.translate.tables import COMMAND, read_tables
from isthmus.translate.vectors import UD_VECTOR, Vectors, handler_of, moved
from isthmus.values import Value, to_json

LOOK_TIMEOUT_S = 2.0
LINE_LIMIT = 4 << 20  # of QMP: ``info registers -a`` takes some 2 KB a vCPU
_WORDS = re.compile(r"0x([0-9a-f]{16}) 0x([0-9a-f]{16})")


class Seen(Value, frozen=True):
    """What a look has shown.

    ``running``: whether the guest runs; ``differs``: whether it takes #UD elsewhere than was known
    or, if nothing was known, whether its vCPUs have one handler for it.
    """

    running: bool
    differs: bool


class Lookout:
    """Looks through the monitor behind one socket."""

    def __init__(self, monitor: Path) -> None:
        self._monitor = monitor

    async def look(self, vectors: Vectors | None) -> Seen | None:
        """See what the guest does, and whether ``vectors`` still hold; None if nothing is seen."""
        with contextlib.suppress(OSError, ValueError, TimeoutError, msgspec.MsgspecError):
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(
                    str(self._monitor), limit=LINE_LIMIT
                )
                try:
                    monitor = _Asking(reader, writer)
                    await monitor.negotiate()
                    running = await monitor.running()
                    return Seen(running=running, differs=await _differs(monitor, vectors))
                finally:
                    writer.close()
        return None


async def _differs(monitor: "_Asking", vectors: Vectors | None) -> bool:
    text = await monitor.ask(COMMAND)
    if vectors is None:
        gates = [await monitor.gate(tables.number, tables.idt) for tables in read_tables(text)]
        handlers = {handler_of(gate, any_stack=True) for gate in gates} - {None}
        return len(handlers) == 1
    if moved(text, vectors):
        return True
    for vcpu in vectors.vcpus:
        gate = await monitor.gate(vcpu.number, vcpu.idt)
        if gate and gate != vcpu.gate:
            return True
    return False


class _Asking:
    """The monitor's commands, over one connection; its events are passed over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def negotiate(self) -> None:
        """Leave the mode in which nothing else is answered."""
        await self._execute({"execute": "qmp_capabilities"})

    async def running(self) -> bool:
        """Whether QEMU lets the guest run."""
        answer = await self._execute({"execute": "query-status"})
        return isinstance(answer, dict) and answer.get("running") is True

    async def ask(self, line: str, vcpu: int = 0) -> str:
        """The text that the human monitor prints."""
        arguments = {"command-line": line, "cpu-index": vcpu}
        answer = await self._execute({"execute": "human-monitor-command", "arguments": arguments})
        return answer if isinstance(answer, str) else ""

    async def gate(self, vcpu: int, idt: int) -> bytes:
        """Gate 6 in the table at ``idt``; empty if it is not mapped."""
        match = _WORDS.search(await self.ask(f"x /2gx {idt + UD_VECTOR * 16:#x}", vcpu))
        words = match.groups() if match else ()
        return b"".join(int(word, 16).to_bytes(8, "little") for word in words)

    async def _execute(self, command: dict[str, object]) -> object:
        self._writer.write(to_json(command) + b"\n")
        while line := await self._reader.readline():
            message = msgspec.json.decode(line, type=dict[str, object])
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise ValueError(message["error"])
        raise ConnectionResetError
