"""QEMU in a lab host as a program of this machine: the same command line, and a process for it.

``python -m isthmus.qualification.kvm.remote FOLDER ARGUMENT...`` has the lab host whose folder that
is run its QEMU with these arguments, and stands for it here:

- the files to boot from are brought to the host, unless it has them already;
- the UNIX sockets that QEMU opens appear here, at the same paths; each connection is passed on;
- the files that QEMU writes (console, payload) appear here, at the same paths, as they grow;
- what QEMU prints is printed here, and it ends here with QEMU's own exit status;
- whoever kills this process kills QEMU: the agent does so when the connection is cut.

So everything that Isthmus does to a QEMU of this machine it does to one in a lab host, unchanged:
launch, monitors, debug stub, evidence, kill.  What cannot be had is storage that two hosts share.
"""

import asyncio
import contextlib
import functools
import hashlib
import os
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.errors import InputError, IsthmusError
from isthmus.qualification.kvm.channel import (
    AgentGoneError,
    AgentRefusedError,
    Channel,
    frames,
    pass_on,
)

QEMU = "/usr/bin/qemu-system-x86_64"
_INPUTS = frozenset({"-kernel", "-initrd", "-bios"})
_LOST = 125
"""Exit status when the host was lost; QEMU itself has none of its own above 1."""


@dataclass(frozen=True, slots=True)
class Command:
    """QEMU's command line, read for what concerns two machines."""

    arguments: tuple[str, ...]
    inputs: tuple[Path, ...]
    sockets: tuple[Path, ...]
    outputs: tuple[Path, ...]

    @property
    def folder(self) -> str:
        """The folder that QEMU's own files lie in, empty if it has none."""
        places = {str(path.parent) for path in (*self.sockets, *self.outputs)}
        return min(places, key=len, default="")


def read_command(arguments: Sequence[str]) -> Command:
    """Find the files and sockets that a command line of QEMU names.

    :raises InputError: it names a disk.
    """
    inputs, sockets, outputs = [], [], []
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option in _INPUTS:
            inputs.append(Path(value))
        elif option in {"-blockdev", "-drive"}:
            raise InputError(
                "a guest with a disk cannot be started on a lab host",
                remedy="lab hosts share no storage: start it without",
            )
        elif option == "-chardev":
            backend, *fields = value.replace(",,", "\0").split(",")
            named = dict(field.partition("=")[::2] for field in fields)
            path = Path(named.get("path", "").replace("\0", ","))
            if backend == "socket" and named.get("server") in {"on", ""}:
                sockets.append(path)
            elif backend == "file":
                outputs.append(path)
    return Command(tuple(arguments), tuple(inputs), tuple(sockets), tuple(outputs))


async def stand_for(channel: Channel, command: Command) -> int:
    """Run QEMU in the host; returns its exit status."""
    arguments = list(command.arguments)
    for path in command.inputs:
        place = await _brought(channel, path)
        arguments = [place if word == str(path) else word for word in arguments]
    if command.folder:
        # What a guest of the same name has left there must not be taken for this one's.
        await channel.run("/bin/rm", "-rf", command.folder)
    reader, writer = await channel.open("run", command.folder, QEMU, *arguments)
    servers = asyncio.create_task(_serve(channel, command.sockets))
    mirrors = [asyncio.create_task(_mirror(channel, path)) for path in command.outputs]
    status = _LOST
    try:
        async for kind, data in frames(reader):
            if kind == "x":
                waited = int(data)
                status = os.waitstatus_to_exitcode(waited)
            else:
                stream = sys.stdout if kind == "o" else sys.stderr
                stream.buffer.write(data)
                stream.flush()
        if status != _LOST and mirrors:
            await asyncio.sleep(0.1)  # the agent looks for what is new every 20 ms
    finally:
        for task in (servers, *mirrors):
            task.cancel()
        writer.close()
    return status if status >= 0 else 128 - status


async def _brought(channel: Channel, path: Path) -> str:
    """The place in the host of a file's content."""
    content = await asyncio.to_thread(path.read_bytes)
    place = f"/store/{hashlib.sha256(content).hexdigest()}"
    if not await channel.has(place):
        await channel.put(place, content)
    return place


async def _serve(channel: Channel, paths: Sequence[Path]) -> None:
    """Open each socket here when QEMU has opened its own."""
    # In QEMU's own order: that the last one listens tells the starter that all is there.
    for path in paths:
        while not await channel.has(str(path)):  # noqa: ASYNC110  (the host cannot tell)
            await asyncio.sleep(0.02)
        path.unlink(missing_ok=True)
        await asyncio.start_unix_server(functools.partial(_connected, channel, path), str(path))


async def _connected(
    channel: Channel, path: Path, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        there, back = await channel.open("dial", str(path))
    except (AgentGoneError, AgentRefusedError):
        writer.close()
        return
    await asyncio.gather(pass_on(reader, back), pass_on(there, writer))


async def _mirror(channel: Channel, path: Path) -> None:
    """Write here what QEMU writes there."""
    with path.open("wb", buffering=0) as file:
        while True:
            with contextlib.suppress(AgentRefusedError):
                reader, writer = await channel.open("follow", str(path))
                try:
                    while block := await reader.read(1 << 16):
                        file.write(block)
                finally:
                    writer.close()
                return
            await asyncio.sleep(0.02)


def run(work: Coroutine[None, None, int]) -> int:
    """Run ``work``; what it leaves is cancelled without a word.

    What is printed here is taken for QEMU's.  Python tells of every connection that is cut when the
    process ends (asyncio.streams, the callback of ``start_unix_server``), after QEMU's last words.
    """

    async def quietly() -> int:
        asyncio.get_running_loop().set_exception_handler(_told)
        return await work

    return asyncio.run(quietly())


def _told(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)


def main() -> int:
    """The process's entry point."""
    try:
        folder, *arguments = sys.argv[1:]
        channel = Channel.read(Path(folder))
        return run(stand_for(channel, read_command(arguments)))
    except (IsthmusError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return _LOST


if __name__ == "__main__":
    sys.exit(main())
