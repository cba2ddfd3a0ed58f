"""One ``xl migrate`` with our filter in its transport, and the way back in our hands.

The stream goes from the source's ``xl migrate`` through this machine to the destination's ``xl
migrate-receive``; neither host has to reach the other, and nothing of ours is installed there::

    xl migrate -> cat > FIFO | runner | filter | runner | xl migrate-receive
    xl migrate <- cat < FIFO | runner |  (us)  | runner | its answers

``xl migrate`` runs on its own at the source and not below us: if this process is killed, its FIFOs
break, ``xl`` finds its transport at an end and resumes the guest, as long as it may.
"""

import asyncio
import contextlib
import os
import re
import shlex
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path

from isthmus.errors import HypervisorError
from isthmus.hypervisor.xen.handshake import BANNER, READY, Backwards, failed, started
from isthmus.hypervisor.xen.runner import DYING, Runner

LOOK_S = 5.0
"""How often the source's ``xl`` is looked for while the receiver says nothing."""

ENDING_S = 180.0
"""How long ``xl`` may take to put its half away once it knows how the move ended."""

_TAIL = 4000

_PREPARE = "mkdir -m 700 {folder} && mkfifo -m 600 {folder}/out {folder}/in"
_START = """
cd /
(setsid sh -c 'xl migrate -s "" {guest} "cat < {folder}/in & exec cat > {folder}/out" \
 > {folder}/log 2>&1 < /dev/null; echo $? > {folder}/status.new; \
 mv {folder}/status.new {folder}/status' > /dev/null 2>&1 < /dev/null &)
"""
# To open a FIFO for both ways never waits, and wakes whoever waits at its other end.
_WAKE = "for end in {folder}/out {folder}/in; do [ -p $end ] && : <> $end; done\n"
_CLEAN = _WAKE + "rm -rf {folder}\n"


def folder_of(move: str) -> str:
    """Where the source's half of the transport of a move lies."""
    return f"/tmp/isthmus-{move}"  # noqa: S108  (its maker fails if it is there)


async def clean(source: Runner, move: str) -> None:
    """Take away what a move has left at its source; whoever waits there is woken."""
    await source.ask(_CLEAN.format(folder=folder_of(move)))


class Transfer:
    """One move of one guest; used once, in the order of its methods."""

    def __init__(
        self,
        move: str,
        guest: str,
        source: Runner,
        destination: Runner,
        filtering: Sequence[str],
        logs: Path,
    ) -> None:
        """What a transfer needs to know.

        :param move: the move's name, of which there is only one.
        :param filtering: a program that passes the stream from its input to its output.
        :param logs: a folder for what the programs complain of.
        """
        self.guest = guest
        self.source = source
        self.destination = destination
        self._filtering = tuple(filtering)
        self._logs = logs
        self._move = move
        self._folder = folder_of(move)
        self._begun = False
        self._children: list[asyncio.subprocess.Process] = []
        self._writer: asyncio.StreamWriter | None = None
        self._back: Backwards | None = None

    async def open(self) -> None:
        """Lay the transport; the guest is not touched.

        :raises HypervisorError: a host is not reached.
        """
        self._begun = True
        await self.source.told(_PREPARE.format(folder=self._folder))
        first, second = os.pipe(), os.pipe()
        try:
            reading = await self.source.start(
                f"exec cat {self._folder}/out",
                stdout=first[1],
                stderr=asyncio.subprocess.DEVNULL,
                dies_with_us=True,
            )
            with (self._logs / "filter.log").open("wb") as log:
                filtering = await asyncio.create_subprocess_exec(
                    *DYING, *self._filtering, stdin=first[0], stdout=second[1], stderr=log
                )
            with (self._logs / "receiver.log").open("wb") as log:
                # It ends by itself when the filter does, and then takes its half away.
                receiver = await self.destination.start(
                    "exec xl migrate-receive", stdin=second[0], stderr=log.fileno()
                )
            back = await self.source.start(
                f"exec cat > {self._folder}/in",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                dies_with_us=True,
            )
        finally:
            for descriptor in (*first, *second):
                os.close(descriptor)
        self._children = [reading, filtering, receiver, back]
        assert receiver.stdout is not None
        assert back.stdin is not None
        self._back = Backwards(receiver.stdout, self.destination.address)
        self._writer = back.stdin

    async def send(self) -> None:
        """Start ``xl migrate``, and wait until the destination holds the whole guest.

        Neither copy runs when this returns, and the source waits for its word.

        :raises HypervisorError: it failed; the source's ``xl`` resumes the guest.
        """
        assert self._back is not None
        guest = shlex.quote(self.guest)
        await self.source.told(_START.format(folder=self._folder, guest=guest))
        await self._back.expect(BANNER)
        await self._tell(BANNER)
        await self._unless_ended(self._back.expect(READY))

    async def let_start(self) -> int:
        """Tell the source that the destination is ready; returns the destination's status.

        From the first moment of this the guest may run on the destination.  0: it has started.
        """
        assert self._back is not None
        await self._tell(READY)
        return await self._back.status()

    async def accept(self) -> None:
        """Let the source destroy its copy, and wait until it has.

        :raises HypervisorError: it did not say so.
        """
        await self._tell(started())
        if await self._ended() != 0:
            raise HypervisorError(f"{self.source.address}: xl migrate: {await self.last_words()}")

    async def refuse(self, status: int = 0) -> None:
        """Let the source resume its copy, and wait until it has.

        The destination's copy must be gone for certain.
        """
        await self._tell(failed(status))
        await self._ended()

    async def last_words(self) -> str:
        """What the three programs complained of, for the record."""
        texts = [_tail(self._logs / name) for name in ("receiver.log", "filter.log")]
        if self._begun:
            with contextlib.suppress(HypervisorError):
                said = await self.source.ask(f"tail -c {_TAIL} {self._folder}/log")
                (self._logs / "source.log").write_text(said.out, encoding="utf-8")
                texts.append(said.out)
        return "; ".join(dict.fromkeys(line for text in texts for line in _complaints(text)))[:1500]

    async def close(self) -> None:
        """Take the transport away.  A source that was told nothing resumes its guest."""
        if self._writer is not None:
            self._writer.close()
        for child in self._children:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.terminate()
        for child in self._children:
            await child.wait()

    async def settled(self) -> bool:
        """Wait until the source's ``xl`` has ended after :meth:`close`; whether it has."""
        # An xl whose connection broke before it had opened its transport would wait for ever.
        return not self._begun or await self._ended(waking=True) is not None

    async def clean(self) -> None:
        """Remove what lies at the source."""
        if self._begun:
            with contextlib.suppress(HypervisorError):
                await clean(self.source, self._move)

    async def _tell(self, message: bytes) -> None:
        assert self._writer is not None
        try:
            self._writer.write(message)
            await self._writer.drain()
        except OSError as error:
            raise HypervisorError(f"{self.source.address}: xl migrate has hung up") from error

    async def _unless_ended(self, work: Coroutine[None, None, None]) -> None:
        """Wait for the receiver, but not longer than the source's ``xl`` lives.

        An ``xl`` that ends before it has opened its transport leaves nothing that would break.
        """
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                said = (await self.source.ask(f"cat {self._folder}/status 2>/dev/null")).out.strip()
                if said.isdigit() and not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
                    raise HypervisorError(
                        f"{self.source.address}: xl migrate ended with status {said}"
                    )
            await task
        finally:
            task.cancel()

    async def _ended(self, *, waking: bool = False) -> int | None:
        """The exit status of the source's ``xl``, 0 if it never began; None if it does not end.

        :param waking: let it find a transport at an end that nobody holds any more.
        """
        deadline = time.monotonic() + ENDING_S
        script = f"cat {self._folder}/status 2>/dev/null || ls {self._folder}/log 2>/dev/null"
        if waking:
            script = _WAKE.format(folder=self._folder) + script
        while time.monotonic() < deadline:
            said = (await self.source.ask(script)).out.strip()
            if said.isdigit():
                return int(said)
            if not said:
                return 0  # xl was never started
            await asyncio.sleep(0.3)
        return None


def _tail(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
    except OSError:
        return ""


# Lines in which xl and libxl say how far they are, or only what follows from what they said before.
_IDLE = re.compile(
    r"migration (sender|target): (Ready|Transfer|Target has|Giving|Got|Domain started)"
    r"|^(xc: (info|progress|Frames)|Saving to|Loading new|Savefile|Parsing config)"
    r"|Saving\.\.\.|Memory: \d|Migration failed,|Non-existant domain|domain_destroy_c"
    r"|died due to fatal signal|domain_resume_done|not suspended: \(shutdown 0"
)
_LINE_LIMIT = 240
_LINES = 4


def _complaints(text: str) -> list[str]:
    """The first of what a program complains of: the rest follows from it."""
    lines = (line.strip() for line in re.split(r"[\r\n]+", text))
    return [line[:_LINE_LIMIT] for line in lines if line and not _IDLE.search(line)][:_LINES]
