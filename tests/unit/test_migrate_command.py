"""What ``isthmus migrate`` refuses before it looks at any guest."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from isthmus.cli.lab import run
from isthmus.cli.migrate import _observer, migrate
from isthmus.errors import InputError
from isthmus.hypervisor.qemu.stream import Transfer
from isthmus.migration.options import Progress
from isthmus.migration.phases import Phase


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("web --to Penryn --tls", "--tls: not for a guest that Isthmus has started"),
        ("web --to Penryn --peer qemu+ssh://b/system --postcopy", "--peer, --postcopy: not for"),
        ("web --from xen+ssh://a --to xen+ssh://b --watch 30m", "--watch: not for a guest of xen"),
        ("web --from xapi://a --to xapi://b --tls", "--tls: not for a guest of xapi"),
        ("web --from qemu:///a --to qemu:///b --through f", "--through: not for a guest of libv"),
        ("--qmp a --to-qmp b --through f", "--through: not for a guest that is named by its QMP"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_refused_not_ignored(words: str, named: str) -> None:
    """Who wants it encrypted is not to be moved in the clear, nor moved first and told then."""
    done = CliRunner().invoke(migrate, words.split())
    assert isinstance(done.exception, InputError)
    assert named in done.exception.message
    assert done.exception.remedy


def test_a_terminal_that_is_lost_does_not_hold_up_a_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be shown is not shown: an error of the screen's would end the move half way."""
    observe = _observer(quiet=False)
    with Path("/dev/full").open("w", buffering=1) as gone:
        monkeypatch.setattr("sys.stderr", gone)
        observe(Progress(phase=Phase.ROLLING_BACK))
        observe(Progress(phase=Phase.MOVING, transfer=Transfer(status="active", total=2)))
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            gone.close()


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_hangs_up_twice_does_not_break_off_the_settling(first: int) -> None:
    """The kernel tells of a lost terminal, and so does the shell."""
    settled = []

    async def work() -> None:
        os.kill(os.getpid(), first)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
            settled.append(True)

    run(work())
    assert settled == [True]
