"""An emulated guest stands still whenever QEMU looks at its dirty pages."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, cast

from isthmus.hypervisor.qemu import stream
from isthmus.hypervisor.qemu.monitor import Monitor


class Qemu:
    """A source as QMP shows it: all has been sent before the late ``cont`` comes."""

    def __init__(self) -> None:
        self.running = True
        self.status = "none"
        self.seen: list[tuple[str, bool]] = []
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    @contextlib.contextmanager
    def events(self, _: str) -> Iterator["asyncio.Queue[dict[str, Any]]"]:
        yield self.queue

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> object:
        self.seen.append((command, self.running))
        match command:
            case "stop":
                self.running = False
            case "cont":
                self.running = True
            case "migrate":
                self._become("pre-switchover")
            case "migrate-continue":
                assert arguments == {"state": "pre-switchover"}
                self._become("completed")
        return {"status": self.status}

    def _become(self, status: str) -> None:
        self.status = status
        self.queue.put_nowait({"data": {"status": status}})


def test_it_is_stopped_at_the_start_and_at_the_switch_over() -> None:
    qemu = Qemu()
    asyncio.run(stream.send(cast("Monitor", qemu), "unix:x", still=True))
    assert ("migrate", False) in qemu.seen
    assert ("migrate-continue", False) in qemu.seen
    assert [name for name, _ in qemu.seen if name in {"stop", "cont"}] == ["stop", "cont", "stop"]
    assert not qemu.running
