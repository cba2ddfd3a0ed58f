"""Lab hosts of Xen that are reached by real ssh: a small server in each dom0, a key, a client."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from xen_lab import COMMAND, WAIT_S, Lab

from isthmus.qualification.lab import packages, programs
from isthmus.qualification.xen.host import LabHost, started

SERVER = "usr/sbin/dropbear"
ENDING_S = 900
"""How long a move may take to come to its end on a busy machine."""

_CONFIG = """Host *
  IdentityFile {key}
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


class Doors:
    """The way by ssh into the hosts of a lab: a server for them, and a key of this machine."""

    def __init__(self, folder: Path) -> None:
        """Get the server and make the key; the tests are skipped where there is none."""
        if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
            pytest.skip("no ssh here")
        if packages.find("dropbear-bin") is None:
            pytest.skip("apt's lists have no dropbear-bin")
        self._key = folder / "key"
        words: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key]
        subprocess.run(words, check=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            chosen = programs.needed_packages(("dropbear-bin",))
            self._files = programs.files(chosen, (SERVER,), (), scratch=Path(scratch))
        config = folder / "config"
        config.write_text(_CONFIG.format(key=self._key))
        wrapper = folder / "bin" / "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        wrapper.chmod(0o755)
        self._folder = wrapper.parent

    def open(self, lab: Lab, name: str) -> None:
        """Start the server in a host's dom0, for the key's owner alone: ``lab``, from now on."""
        lab.path = f"{self._folder}:{os.environ['PATH']}"
        asyncio.run(self._put(host_of(lab, name)))
        lab.xl(
            name,
            # It starts itself anew for each connection, so the loader has to know its libraries.
            "echo /ssh >> /etc/ld.so.conf; /sbin/ldconfig;"
            " chmod 700 /root /root/.ssh; chown -R 0:0 /root;"
            " /ssh/dropbear -R -E -s -p 22 > /ssh/log 2>&1",
        )

    async def _put(self, host: LabHost) -> None:
        channel = host.channel()
        await channel.run("/bin/mkdir", "-p", "/ssh", "/root/.ssh", "/etc/dropbear")
        for name, content in self._files.items():
            if not await channel.has(f"/{name}"):  # dom0 has a C library of its own
                await channel.put(f"/ssh/{Path(name).name}", content)
        await channel.put("/root/.ssh/authorized_keys", self._key.with_suffix(".pub").read_bytes())
        await channel.put("/etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        await channel.put("/etc/group", b"root:x:0:\n")
        await channel.put("/etc/shells", b"/bin/sh\n")


def host_of(lab: Lab, name: str) -> LabHost:
    """A host of a lab that is up."""
    return started(lab.folder / "run" / ".xen")[name]


def address(lab: Lab, name: str) -> str:
    """How a move by ssh names a host."""
    return f"xen+ssh://root@127.0.0.1:{host_of(lab, name).ssh}"


class Mover:
    """``isthmus migrate`` between two hosts by ssh, as a process of its own."""

    CONNECTIONS: ClassVar[Mapping[str, bytes]] = {
        "stream": b"exec cat /tmp/isthmus-",
        "answers": b"exec cat > /tmp/isthmus-",
        "receiver": b"exec xl migrate-receive",
    }
    """What the remote command of each ssh of the transport has in it: the stream from the source,
    the answers to it, the receiver at the destination."""

    def __init__(self, lab: Lab, guest: str, source: str, to: str) -> None:
        """Start it."""
        self._said = lab.folder / "mover.log"
        ends = "--from", address(lab, source), "--to", address(lab, to)
        with self._said.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "migrate", guest, *ends],
                env=lab.environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to come true while it moves."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def in_mid_move(self) -> bool:
        """Whether some of the guest's memory has gone to the destination."""
        with contextlib.suppress(OSError, LookupError):
            counts = Path(f"/proc/{self.connection('receiver')}/io").read_text()
            return int(re.findall(r"^wchar: (\d+)", counts, re.MULTILINE)[0]) >= 16 << 20
        return False

    def connection(self, which: str) -> int:
        """The pid of one ssh of the transport.

        :raises LookupError: it is not there.
        """
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes()
                ours = f"\nPPid:\t{self.process.pid}\n" in (path / "status").read_text()
                if ours and self.CONNECTIONS[which] in words and b"ssh\0" in words.split(b"-F")[0]:
                    return int(path.name)
        raise LookupError(which)

    def drop(self, which: str) -> None:
        """Kill one ssh of the transport."""
        os.kill(self.connection(which), signal.SIGKILL)

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout=ENDING_S)

    def said(self) -> str:
        """What it has said."""
        return self._said.read_text()
