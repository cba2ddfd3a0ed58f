"""A command in dom0 of a lab host as a program of this machine: its input, its output, its end.

``python -m isthmus.qualification.xen.remote FOLDER COMMAND`` runs COMMAND in the shell of the host
whose folder that is.  It is to the lab what ``ssh HOST COMMAND`` is to a host of a data centre: if
this process is killed, the command's input ends, and it is left alone.
"""

import asyncio
import contextlib
import os
import struct
import sys
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.qualification.kvm.channel import Channel, frames

LOST = 255
"""Exit status when the host was lost, as ssh's."""

_BLOCK = 1 << 16


async def stand_for(channel: Channel, command: str) -> int:
    """Run a command in the host with our standard input and outputs; returns its exit status."""
    reader, writer = await channel.open("feed", "/bin/sh", "-c", command)
    feeding = asyncio.create_task(_feed(writer))
    status = LOST
    try:
        async for kind, data in frames(reader):
            if kind == "x":
                status = os.waitstatus_to_exitcode(int(data))
                break
            _write_all(1 if kind == "o" else 2, data)
    except BrokenPipeError:
        status = LOST  # nobody reads what it says: hang up, as ssh does
    finally:
        feeding.cancel()
        writer.close()
    return status if status >= 0 else 128 - status


async def _feed(writer: asyncio.StreamWriter) -> None:
    """Pass our standard input on as frames, then its end."""
    with contextlib.suppress(OSError):
        while True:
            block = await asyncio.to_thread(os.read, 0, _BLOCK)
            writer.write(struct.pack("<cI", b"i" if block else b"z", len(block)) + block)
            await writer.drain()
            if not block:
                return


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _run(folder: Path, command: str) -> None:
    status = LOST
    try:
        status = await stand_for(Channel.read(folder), command)
    except (IsthmusError, OSError) as error:
        sys.stderr.write(f"{error}\n")
    # Not by the loop's own end, which waits for the thread that waits for input.
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """The process's entry point."""
    folder, command = sys.argv[1:]
    asyncio.run(_run(Path(folder), command))


if __name__ == "__main__":
    main()
