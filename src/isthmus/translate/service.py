"""The translator of one guest as a process of its own, and the client that commands it.

It outlives the command that moved the guest: as long as the guest runs on a CPU that lacks what
it needs, somebody must serve its #UDs. Start: ``python -m isthmus.translate.service --gdb SOCKET
--directory FOLDER``. Beside the stub's socket it expects a monitor of its own, ``look.sock``; a
QEMU without one is stopped for each look.  It is commanded over a private UNIX socket, one JSON
document a line: ``{"do": "arm"}`` gives ``{"ok": true, …}`` or ``{"ok": false, "error": …}``. It
ends when QEMU does.

If it is killed, the breakpoint stays in QEMU and the guest stops at its next #UD; a translator
that is started again takes over there (``take-over``).
"""

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from isthmus.errors import HypervisorError, IsthmusError
from isthmus.translate.cost import Watch
from isthmus.translate.log import NAME, open_log
from isthmus.translate.outside import Lookout, Translator, TranslatorStatus
from isthmus.translate.placement import WARN_SHARE
from isthmus.translate.rewrite.apply import Rewriter
from isthmus.translate.rewrite.record import RewriteOrder, RewriteRecord
from isthmus.translate.rsp import Stub, StubGoneError
from isthmus.values import Value, read_value, to_json

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0
WATCH_S = 5.0  # between two looks at the cost
SOCKET = "translator.sock"
LOOK = "look.sock"
_SAID = 4096  # bytes at the log's end, for a translator that does not start


class ArmReport(Value, frozen=True):
    """What arming found: the #UD entry's address, and how long it took in ms."""

    entry: int
    took_ms: float


class _Answer(Value, frozen=True):
    ok: bool
    error: str = ""
    arm: ArmReport | None = None
    status: TranslatorStatus | None = None
    rewritten: RewriteRecord | None = None


class TranslatorError(HypervisorError):
    """The translator cannot be reached or refuses."""


class TranslatorClient:
    """The commanding end of one translator."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, directory: Path) -> "TranslatorClient":
        """Connect to the translator whose files lie in ``directory``.

        :raises TranslatorError: it does not run.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(directory / SOCKET))
        except OSError as error:
            raise TranslatorError(
                f"{directory}: no translator answers ({error.strerror})",
                remedy="`isthmus status` starts it again",
            ) from error
        return cls(reader, writer)

    async def arm(self) -> ArmReport:
        """Break at the #UD entry of the loaded, paused guest; does not resume it."""
        answer = await self._do("arm")
        assert answer.arm is not None
        return answer.arm

    async def prepare(self, order: Path) -> None:
        """Read the order to rewrite that lies there, and the kernel image that it names."""
        await self._do("prepare", order=str(order))

    async def rewrite(self) -> RewriteRecord:
        """Carry out the prepared order on the paused guest; before :meth:`arm`."""
        answer = await self._do("rewrite")
        assert answer.rewritten is not None
        return answer.rewritten

    async def resume(self) -> None:
        """Let the guest run, served."""
        await self._do("resume")

    async def hold(self) -> None:
        """Stop the guest and promise not to resume it; what was written into it is taken out."""
        await self._do("hold")

    async def take_over(self) -> ArmReport:
        """Arm a guest that runs, or that an earlier translator has left, and let it go on."""
        answer = await self._do("take-over")
        assert answer.arm is not None
        return answer.arm

    async def detach(self) -> None:
        """Take everything out of guest and QEMU and end the translator; the guest stays as it is.

        One that runs goes on, without translation; one that stands stays where it is.
        """
        await self._do("detach")

    async def ended(self) -> None:
        """Wait until a detached translator's process has gone, so that another can come."""
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(self._reader.read(), ANSWER_TIMEOUT_S)

    async def status(self) -> TranslatorStatus:
        """The counters."""
        answer = await self._do("status")
        assert answer.status is not None
        return answer.status

    async def close(self) -> None:
        """Drop this connection; the translator goes on."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _do(self, what: str, **more: str) -> _Answer:
        try:
            self._writer.write(to_json({"do": what, **more}) + b"\n")
            line = await asyncio.wait_for(self._reader.readline(), ANSWER_TIMEOUT_S)
            answer = msgspec.json.decode(line, type=_Answer)
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            raise TranslatorError(f"the translator does not answer to {what}") from error
        if not answer.ok:
            raise TranslatorError(f"the translator cannot {what}: {answer.error}")
        return answer


async def spawn(
    gdb_socket: Path, directory: Path, *, warn_share: float = WARN_SHARE, level: str = ""
) -> TranslatorClient:
    """Start a translator for the QEMU behind ``gdb_socket`` and connect to it.

    :param warn_share: above this share of a vCPU its log warns of the cost.
    :param level: the command with which to level the guest, for that warning.
    :raises TranslatorError: it does not come up; its log is in ``directory``.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # noqa: ASYNC240  (once, at start)
    command = [
        sys.executable, "-m", "isthmus.translate.service",
        "--gdb", str(gdb_socket), "--directory", str(directory),
        "--warn-share", str(warn_share), "--level", level,
    ]  # fmt: skip
    log_path = directory / NAME
    with log_path.open("ab") as log:
        child = subprocess.Popen(  # noqa: ASYNC220  (it must outlive this event loop)
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(TranslatorError):
            return await TranslatorClient.connect(directory)
        await asyncio.sleep(0.01)
    child.kill()
    said = log_path.read_bytes()[-_SAID:].decode(errors="replace").strip().splitlines()
    raise TranslatorError(f"the translator does not start: {said[-1] if said else 'no message'}")


class Service:
    """The serving end."""

    def __init__(self, translator: Translator, log: logging.Logger) -> None:
        self._translator = translator
        self._log = log
        self._turn = asyncio.Lock()
        self.detached = False
        self._rewriter: Rewriter | None = None

    def status(self) -> TranslatorStatus:
        """The counters."""
        return self._translator.status()

    async def answer(self, what: str, *, order: str = "") -> _Answer:
        """Carry out one command; ``order`` is the file that ``prepare`` is about."""
        if what == "status":
            return _Answer(ok=True, status=self.status())
        async with self._turn:
            if what == "prepare":
                self._rewriter = Rewriter(read_value(Path(order), RewriteOrder))
                return _Answer(ok=True)
            return await self._carry_out(what)

    async def _carry_out(self, what: str) -> _Answer:
        translator = self._translator
        begun = time.perf_counter()
        if what in {"arm", "take-over"}:
            vectors = await translator.arm()
            if what == "take-over":
                # Connecting has stopped the guest; if a vCPU stands at the #UD entry, the
                # breakpoint there stops it at once again, and it is served as any other.
                translator.resume()
            took = round((time.perf_counter() - begun) * 1000, 3)
            self._log.info("armed at %#x in %s ms", vectors.entry, took)
            return _Answer(ok=True, arm=ArmReport(entry=vectors.entry, took_ms=took))
        if what == "rewrite" and self._rewriter is not None:
            return _Answer(ok=True, rewritten=await self._rewriter.apply(translator.stub))
        if what == "resume":
            await translator.release()
        elif what == "hold":
            await translator.hold()
        elif what == "detach":
            await translator.detach()
            self.detached = True
        else:
            return _Answer(ok=False, error="no such command")
        return _Answer(ok=True, status=translator.status())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it hangs up."""
        try:
            while line := await reader.readline():
                try:
                    request = msgspec.json.decode(line, type=dict[str, str])
                    reply = await self.answer(request.get("do", ""), order=request.get("order", ""))
                except (IsthmusError, msgspec.MsgspecError) as error:
                    self._log.warning("refused: %s", error)
                    reply = _Answer(ok=False, error=str(error))
                writer.write(to_json(reply) + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            return
        finally:
            writer.close()


async def _main(gdb: Path, directory: Path, watch: Watch) -> int:
    # QEMU's socket has room for one client: a second translator would steal the first one's stops.
    lock = os.open(directory / "translator.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write("another translator serves this guest\n")
        return 1
    try:
        stub = await Stub.connect(gdb)
    except StubGoneError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    monitor = gdb.with_name(LOOK)
    lookout = Lookout(monitor) if monitor.is_socket() else None
    log = open_log(directory)
    service = Service(Translator(stub, lookout), log)
    path = directory / SOCKET
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(service.serve, str(path))
    log.info("serving %s", gdb)
    looked = time.monotonic()
    async with server:
        while not stub.closed and not service.detached:
            await asyncio.sleep(0.1)
            if (now := time.monotonic()) - looked >= WATCH_S:
                looked = now
                for line in watch.judge(service.status(), now):
                    log.warning(line)
    log.info("detached" if service.detached else "QEMU has gone")
    path.unlink(missing_ok=True)
    return 0


def main() -> int:
    """The process's entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gdb", type=Path, required=True, help="QEMU's debug-stub socket")
    parser.add_argument("--directory", type=Path, required=True, help="private folder of our files")
    parser.add_argument(
        "--warn-share", type=float, default=WARN_SHARE, help="warn above this share of a vCPU"
    )
    parser.add_argument("--level", default="", help="the command that levels the guest")
    options = parser.parse_args()
    watch = Watch(options.warn_share, options.level or "isthmus level")
    return asyncio.run(_main(options.gdb, options.directory, watch))


if __name__ == "__main__":
    sys.exit(main())
