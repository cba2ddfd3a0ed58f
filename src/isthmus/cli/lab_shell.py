"""A shell in a lab host on the terminal of this one."""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

import click

from isthmus.cli import lab as shared
from isthmus.qualification.kvm.channel import Channel

_END_OF_INPUT = b"\x04"
"""What a terminal takes for the end (termios(3), VEOF)."""


def open_shell(channel: Channel, command: Sequence[str]) -> None:
    """Run a command in a host's shell and print what it says; open the shell if there is none."""
    if command:
        click.echo(shared.run(channel.run("/bin/sh", "-c", " ".join(command))), nl=False)
        return
    with _raw_terminal():
        shared.run(_interact(channel))


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Let every key through to the other side, if the standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


async def _interact(channel: Channel) -> None:
    """Pass the terminal on until the shell ends."""
    loop = asyncio.get_running_loop()
    reader, writer = await channel.open("shell")
    typed = asyncio.StreamReader()
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(typed), os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    )

    async def send() -> None:
        while block := await typed.read(1 << 16):
            writer.write(block)
        writer.write(_END_OF_INPUT)

    sending = asyncio.create_task(send())
    with contextlib.suppress(OSError):
        while block := await reader.read(1 << 16):
            os.write(sys.stdout.fileno(), block)
    sending.cancel()
