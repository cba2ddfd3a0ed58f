"""The bytes of a stream from one descriptor to another, as the walk wants them.

Page data does not come into this process: ``splice(2)`` moves it from pipe to pipe.  Where neither
end is a pipe, a fixed buffer is read into and written from.

**Direction.**  ``xl migrate`` (tools/xl/xl_migrate.c) speaks both ways over its transport.  From
the receiver come a banner, "domain received", and the report whether it started; the source sends
its stream, and behind it the permission to start.  The way back is never touched: the receiver's
program inherits our standard output.  Behind the stream's END every byte of the source passes
unseen.

**Who waits for whom.**  The source waits for the banner until its pipe is closed.  So we keep no
copy of that pipe once the receiver has it, and while we wait for input we watch the output too: if
the receiver dies, we end, and the source sees it.
"""

import contextlib
import errno
import fcntl
import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from typing import Protocol

from isthmus.errors import EnvironmentLackError, HypervisorError
from isthmus.translate.xen.fault import RESUMES, StreamError
from isthmus.translate.xen.knowledge import Rule
from isthmus.translate.xen.report import Report, Summary
from isthmus.translate.xen.walk import Give, Pass, Rest, Seal, Take, Walk

PIPE_BYTES = 1 << 20
"""Size that our pipes are set to, the most that Linux gives without privilege (pipe(7))."""

ENDING_S = 30.0
"""How long a receiver may take to end after its stream was cut; ``xl`` needs a second or two."""


class Channel(Protocol):
    """What the walk's steps need of a way from source to sink; ``taken`` counts what left it."""

    taken: int

    def take(self, count: int, /) -> bytes | None:
        """Exactly ``count`` bytes; None if the input ends before."""

    def give(self, data: bytes | bytearray, /) -> None:
        """Write all of ``data``."""

    def move(self, count: int, /) -> bool:
        """Let ``count`` bytes pass; False if the input ends before."""

    def rest(self) -> None:
        """Let everything pass until the input ends."""


class Pump:
    """Moves bytes from ``source`` to ``sink``; ``taken`` is how many have left the source."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink
        self._splices = True
        self._buffer = bytearray()
        self.taken = 0
        for descriptor in (source, sink):
            # Not a pipe, or the user's share of pipe memory is used up: it goes on as it is.
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(sink, 0)
        self._poll.register(source, select.POLLIN)

    def take(self, count: int) -> bytes | None:
        """Exactly ``count`` bytes; None if the input ends before."""
        parts: list[bytes] = []
        while count:
            self._wait()
            part = os.read(self._source, min(count, PIPE_BYTES))
            if not part:
                return None
            parts.append(part)
            count -= len(part)
            self.taken += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def give(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._sink, view) :]

    def move(self, count: int) -> bool:
        """Let ``count`` bytes pass; False if the input ends before."""
        while count:
            moved = self._some(count)
            if not moved:
                return False
            count -= moved
            self.taken += moved
        return True

    def rest(self) -> None:
        """Let everything pass until the input ends."""
        while moved := self._some(PIPE_BYTES):
            self.taken += moved

    def _some(self, count: int) -> int:
        self._wait()
        if self._splices:
            try:
                return os.splice(self._source, self._sink, min(count, PIPE_BYTES))
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.ENOSYS}:
                    raise
                self._splices = False
        if not self._buffer:
            self._buffer = bytearray(PIPE_BYTES)
        view = memoryview(self._buffer)[: min(count, PIPE_BYTES)]
        got = os.readv(self._source, [view])
        self.give(view[:got])
        return got

    def _wait(self) -> None:
        """Wait for input; a sink that nobody reads any more ends the wait."""
        for descriptor, events in self._poll.poll():
            if descriptor == self._sink and events & (select.POLLERR | select.POLLHUP):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def filtered(pump: Channel, rules: tuple[Rule, ...], report: Report, *, to: str) -> Summary:
    """Send one stream through ``pump``, checked and rewritten, up to the end of the input.

    :raises StreamError: the stream is wrong, or ends before its END.
    :raises HypervisorError: the receiver went away.
    """
    walk = Walk(rules, report.add)
    try:
        return _driven(walk, pump, report, to)
    except BrokenPipeError as error:
        raise HypervisorError(
            f"the receiver went away at offset {pump.taken:#x} of the Xen stream, {walk.record}",
            remedy="look at the destination's own message (xl's log there)",
        ) from error


def _driven(walk: Walk, pump: Channel, report: Report, to: str) -> Summary:
    steps = walk.run()
    summary: Summary | None = None
    sent: bytes | None = None
    while True:
        try:
            step = steps.send(sent) if sent is not None else next(steps)
        except StopIteration:
            break
        sent = None
        match step:
            case Take(count):
                sent = pump.take(count)
                if sent is None:
                    raise _cut(walk, pump)
            case Give(data):
                pump.give(data)
            case Pass(count):
                if not pump.move(count):
                    raise _cut(walk, pump)
            case Seal():
                summary = _summary(walk, pump, report, to)
                report.seal(summary)
            case Rest():
                # A receiver that has reported and gone is at its end, not at fault.
                with contextlib.suppress(BrokenPipeError):
                    pump.rest()
    assert summary is not None, "the walk seals before it ends"
    return summary


def _summary(walk: Walk, pump: Channel, report: Report, to: str) -> Summary:
    return Summary(
        guest=walk.guest,
        xen=walk.xen,
        to=to,
        records=dict(walk.counts),
        pages=walk.pages,
        bytes=pump.taken,
        changes=len(report.changes),
    )


def _cut(walk: Walk, pump: Channel) -> StreamError:
    return StreamError.at(
        walk.start, walk.record, f"the stream ends at {pump.taken:#x}, before its END"
    )


@contextlib.contextmanager
def receiver(command: Sequence[str]) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """Start the receiver's program; gives the descriptor of its input, and the process.

    It inherits our standard output for the way back, and we let go of ours.  When the block ends
    its input is closed, which tells it that no more comes.

    :raises EnvironmentLackError: it cannot be started.
    """
    reading, writing = os.pipe()
    try:
        try:
            child = subprocess.Popen(list(command), stdin=reading)
        except OSError as error:
            raise EnvironmentLackError(
                f"{command[0]}: {error.strerror or error}",
                remedy="name the program that reaches the destination, such as ssh",
            ) from error
        finally:
            os.close(reading)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.close(nothing)
        yield writing, child
    finally:
        os.close(writing)


def run(
    command: Sequence[str], rules: tuple[Rule, ...], report: Report, *, to: str
) -> tuple[Summary, int]:
    """Standard input to ``command`` (or to the standard output), and its exit status.

    :raises StreamError: the stream was refused; the receiver has been cut off and has ended.
    """
    if not command:
        try:
            return filtered(Pump(0, 1), rules, report, to=to), 0
        except OSError as error:
            raise _broken(error) from error
    with contextlib.ExitStack() as ending:
        with receiver(command) as (sink, child):
            ending.callback(_end, child)
            try:
                summary = filtered(Pump(0, sink), rules, report, to=to)
            except OSError as error:
                raise _broken(error) from error
        return summary, child.wait()


def _broken(error: OSError) -> HypervisorError:
    return HypervisorError(
        f"the Xen stream cannot be moved: {error.strerror or error}", remedy=RESUMES
    )


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Wait for a receiver whose input is closed; one that does not end is told to."""
    try:
        child.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        child.terminate()
        child.wait()
