"""The agent of a lab host and the program that stands for its QEMU, both on this machine."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.places import cache_folder
from isthmus.qualification.kvm import channel as channel_module
from isthmus.qualification.kvm.channel import (
    AgentGoneError,
    AgentRefusedError,
    Channel,
    frames,
    pass_on,
)
from isthmus.qualification.kvm.host import host_model, host_models
from isthmus.qualification.kvm.image import build_agent
from isthmus.qualification.kvm.remote import read_command


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[Channel]:
    program = tmp_path / "agent"
    program.write_bytes(build_agent(cache_folder()))
    program.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen([program, str(port), "secret"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    yield Channel("here", port, "secret")
    child.kill()
    child.wait()


async def test_a_program_runs_and_its_output_comes_back(channel: Channel) -> None:
    assert await channel.run("/bin/sh", "-c", "echo one; echo two >&2") in {
        "one\ntwo\n", "two\none\n",
    }  # fmt: skip
    with pytest.raises(AgentRefusedError, match="no luck"):
        await channel.run("/bin/sh", "-c", "echo no luck; exit 3")


async def test_a_program_ends_when_its_controller_hangs_up(channel: Channel) -> None:
    reader, writer = await channel.open("run", "", "/bin/sh", "-c", "echo $$; sleep 600")
    async for _, data in frames(reader):
        pid = int(data)
        break
    writer.close()
    deadline = time.monotonic() + 120
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "a guest must not outlive who is responsible for it"
        await asyncio.sleep(0.01)


async def test_a_file_is_there_whole(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not await channel.has(str(path))
    content = os.urandom(300_000)
    await channel.put(str(path), content)
    assert path.read_bytes() == content
    assert await channel.has(str(path))
    with pytest.raises(AgentRefusedError, match="No such file"):
        await channel.put(str(tmp_path / "no" / "folder"), b"")


async def test_a_file_is_followed_as_it_grows(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_text("one")
    reader, writer = await channel.open("follow", str(path))
    assert await reader.readexactly(3) == b"one"
    with path.open("a") as file:
        file.write("two")
    async with asyncio.timeout(120):
        assert await reader.readexactly(3) == b"two"
    writer.close()


async def test_a_socket_is_passed_on_both_ways(channel: Channel, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = await asyncio.start_unix_server(pass_on, str(path))  # an echo
    reader, writer = await channel.open("dial", str(path))
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.close()
    server.close()


async def test_without_the_token_nobody_gets_in(channel: Channel) -> None:
    stranger = Channel("here", channel.port, "guess")
    with pytest.raises(AgentRefusedError, match="token"):
        await stranger.open("has", "/")


async def test_a_host_that_is_silent_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "ANSWER_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        channel = Channel("here", silent.getsockname()[1], "secret")
        with pytest.raises(AgentGoneError, match=r"here: the lab host has not answered has for"):
            await channel.has("/")


async def test_a_host_that_is_not_up_is_one_clear_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(AgentGoneError, match="nowhere"):
        await Channel("nowhere", port, "").open("has", "/")


ENDS_WITH_A_CONNECTION = """
import asyncio, sys
from isthmus.qualification.kvm.remote import run

async def work():
    connected = asyncio.Event()
    async def serve(reader, writer):
        connected.set()
        await reader.read()
    await asyncio.start_unix_server(serve, sys.argv[1])
    ends = await asyncio.open_unix_connection(sys.argv[1])
    await connected.wait()
    return 3

sys.exit(run(work()))
"""


def test_an_end_while_somebody_is_connected_prints_nothing(tmp_path: Path) -> None:
    """What the program prints last is taken for QEMU's reason to end."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS_WITH_A_CONNECTION, str(tmp_path / "s")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "")


def test_what_concerns_two_machines_is_found_in_a_command_line() -> None:
    command = read_command(
        [
            "-chardev", "socket,id=qmp,path=/run/a,,b/qmp.sock,server=on,wait=off",
            "-chardev", "socket,id=out,path=/run/elsewhere.sock",
            "-chardev", "file,id=console,path=/run/a,,b/console.log",
            "-kernel", "/boot/vmlinuz", "-initrd", "/boot/initrd",
        ]
    )  # fmt: skip
    assert command.sockets == (Path("/run/a,b/qmp.sock"),)
    assert command.outputs == (Path("/run/a,b/console.log"),)
    assert command.inputs == (Path("/boot/vmlinuz"), Path("/boot/initrd"))
    assert command.folder == "/run/a,b"


def test_a_disk_is_refused() -> None:
    with pytest.raises(InputError, match="disk"):
        read_command(["-blockdev", "driver=raw,file.filename=/a"])


def test_the_folder_of_no_host(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of a lab host"):
        Channel.read(tmp_path)


def test_every_kind_of_host_is_of_a_known_maker_and_emulator() -> None:
    for model in host_models().values():
        assert model.maker in {"AuthenticAMD", "GenuineIntel"}
        assert model.emulator in {"qemu", "bochs"}
    with pytest.raises(InputError, match="cray"):
        host_model("cray")
