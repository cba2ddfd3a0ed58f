"""The client of the translator's process: an answer that came too late is not taken for another."""

import asyncio
from pathlib import Path

import pytest

from isthmus.translate import service
from isthmus.translate.service import SOCKET, TranslatorClient, TranslatorError


async def test_an_answer_that_was_given_up_is_not_that_of_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold that took too long and failed must not make the resume fail that follows it."""
    asked: list[bytes] = []
    late = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            asked.append(line)
            if b"hold" in line:
                await late.wait()
                writer.write(b'{"ok":false,"error":"too late"}\n')
            else:
                writer.write(b'{"ok":true}\n')
        writer.close()

    server = await asyncio.start_unix_server(serve, str(tmp_path / SOCKET))
    client = await TranslatorClient.connect(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(service, "ANSWER_TIMEOUT_S", 0.05)
        with pytest.raises(TranslatorError, match="does not answer to hold"):
            await client.hold()
    late.set()
    await client.resume()
    assert [b"hold" in asked[0], b"resume" in asked[1]] == [True, True]
    await client.close()
    server.close()
