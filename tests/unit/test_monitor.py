"""Connecting to a QMP monitor, by a server of our own that answers as QEMU does in a bad moment."""

import asyncio
import json
from pathlib import Path

import pytest

from isthmus.hypervisor.qemu.monitor import CommandRefusedError, Monitor, MonitorGoneError

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
        "capabilities": [],
    }
}
EVENT = {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}


class Server:
    """Sends an event before the answer to qmp_capabilities, for the first ``early`` clients."""

    def __init__(self, early: int) -> None:
        self.early = early
        self.clients = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(message: object) -> None:
            writer.write(json.dumps(message).encode() + b"\r\n")

        self.clients += 1
        say(GREETING)
        while data := await reader.read(4096):  # one request at a time, with no line end
            request = json.loads(data)
            if request["execute"] == "qmp_capabilities" and self.clients <= self.early:
                say(EVENT)
            if request["execute"] == "fail":
                say({"error": {"class": "GenericError", "desc": "no"}, "id": request.get("id")})
            else:
                answer = {"return": {"status": "running"}}
                say(answer | ({"id": request["id"]} if "id" in request else {}))
        writer.close()


async def test_an_event_in_the_negotiation_is_survived(tmp_path: Path) -> None:
    server = Server(early=3)
    async with (
        await asyncio.start_unix_server(server.serve, str(tmp_path / "s")),
        Monitor.session(tmp_path / "s") as monitor,
    ):
        assert await monitor.status() == "running"
        with pytest.raises(CommandRefusedError, match="no"):
            await monitor.execute("fail")
    assert server.clients == 4


async def test_a_server_that_never_negotiates_is_given_up(tmp_path: Path) -> None:
    server = Server(early=1000)
    async with await asyncio.start_unix_server(server.serve, str(tmp_path / "s")):
        with pytest.raises(MonitorGoneError, match="not a QMP monitor"):
            await Monitor.connect(tmp_path / "s")
    assert server.clients < 20
