"""The controller's end of the channel to a lab host: see ``agent.c`` for what is said on it.

Each request is a TCP connection to a port on the loopback that the emulator forwards into the
host; the token keeps the other users of this machine out.  Only the standard library is imported:
:mod:`isthmus.qualification.kvm.remote` stands for QEMU and must start at once.
"""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from isthmus.errors import HypervisorError, InputError

ANSWER_TIMEOUT_S = 180.0
"""An emulated host answers at once, on a busy machine after some seconds; one that swaps or boots
guests has been silent for a minute."""
_BLOCK = 1 << 16
_FILE = "channel.json"


class AgentGoneError(HypervisorError):
    """The lab host does not answer: it is not up, or it has ended."""


class AgentRefusedError(HypervisorError):
    """The agent answered that it cannot; its reason is in the message."""


@dataclass(frozen=True, slots=True)
class Channel:
    """Where the agent of a lab host is reached, what lets one in, and which lab the host is of."""

    host: str
    port: int
    token: str
    lab: str = "kvm"

    def write(self, folder: Path) -> None:
        """Leave the channel in a host's private folder."""
        (folder / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Channel":
        """The channel of the host whose folder this is.

        :raises InputError: there is none.
        """
        try:
            fields = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            lab = str(fields.get("lab", "kvm"))
            return cls(str(fields["host"]), int(fields["port"]), str(fields["token"]), lab)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder}: not the folder of a lab host", remedy="isthmus lab --help"
            ) from error

    async def open(self, *words: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Ask for something; returns the connection on which it then happens.

        :raises AgentGoneError: nobody answers.
        :raises AgentRefusedError: the agent cannot.
        """
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            raise AgentGoneError(
                f"{self.host}: the lab host does not answer ({error.strerror})",
                remedy=f"isthmus lab {self.lab} status",
            ) from error
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                request = b"".join(word.encode() + b"\0" for word in (self.token, *words))
                writer.write(struct.pack("<I", len(request)) + request)
                await writer.drain()
                await self._accepted(reader, words)
        except TimeoutError as error:
            writer.close()
            raise AgentGoneError(
                f"{self.host}: the lab host has not answered {words[0]} for {ANSWER_TIMEOUT_S:g} s",
                remedy=f"isthmus lab {self.lab} status; its console tells what it does",
            ) from error
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _accepted(self, reader: asyncio.StreamReader, words: tuple[str, ...]) -> None:
        try:
            if await reader.readexactly(1) == b"+":
                return
            size = struct.unpack("<I", await reader.readexactly(4))[0]
            reason = (await reader.readexactly(min(size, 512))).decode(errors="replace")
        except (OSError, asyncio.IncompleteReadError) as error:
            raise AgentGoneError(
                f"{self.host}: the lab host hung up on {words[0]}",
                remedy=f"isthmus lab {self.lab} status",
            ) from error
        raise AgentRefusedError(f"{self.host}: {words[0]}: {reason}")

    async def has(self, path: str) -> bool:
        """Whether the host has that path."""
        try:
            _, writer = await self.open("has", path)
        except AgentRefusedError:
            return False
        writer.close()
        return True

    async def put(self, path: str, content: bytes) -> None:
        """Write a file of the host, whole or not at all."""
        reader, writer = await self.open("put", path, str(len(content)))
        try:
            writer.write(content)
            await writer.drain()
            await self._accepted(reader, ("put",))
        except OSError as error:
            raise AgentGoneError(f"{self.host}: hung up during {path}") from error
        finally:
            writer.close()

    async def set_clock(self, seconds: float) -> None:
        """Set the host's wall clock to Unix ``seconds``."""
        _, writer = await self.open("clock", f"{seconds:.6f}")
        writer.close()

    async def run(self, *words: str) -> str:
        """Run a program to its end; returns what it printed.

        :raises AgentRefusedError: it ended with another status than 0.
        """
        reader, writer = await self.open("run", "", *words)
        said = b""
        try:
            async for kind, data in frames(reader):
                if kind != "x":
                    said += data
                elif int(data) != 0:
                    raise AgentRefusedError(
                        f"{self.host}: {words[0]}: {said.decode(errors='replace').strip()[-400:]}"
                    )
        finally:
            writer.close()
        return said.decode(errors="replace")


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    """The frames of a program that runs, up to its end or the connection's."""
    with contextlib.suppress(asyncio.IncompleteReadError, OSError):
        while True:
            kind, size = struct.unpack("<cI", await reader.readexactly(5))
            yield kind.decode(), await reader.readexactly(size)


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy a stream to its end, then hang up."""
    with contextlib.suppress(OSError):
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
    writer.close()
