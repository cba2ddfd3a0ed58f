"""How commands reach the dom0 of a Xen host: on this machine, over ssh, or into the lab.

All ways are alike: a program of this machine whose last argument is a line for the shell there, and
whose input and outputs are those of the command there.  So a migration stream is passed from host
to host by pipes between such programs, and what is tried in the lab holds for ssh.

Addresses: ``xen:///`` is this machine, ``xen+ssh://[USER@]HOST[:PORT]`` another one (by the ssh of
this machine with its keys and configuration; it never asks for a password), ``xen+lab://NAME``
one of :mod:`isthmus.qualification.xen`.  ``xl`` is the same as ``xen``.
"""

import asyncio
import contextlib
import re
import shlex
import sys
from urllib.parse import urlsplit

from isthmus.errors import HypervisorError, InputError
from isthmus.places import run_folder
from isthmus.values import Value

SCHEMES = frozenset({"xen", "xl"})
LAB_FOLDER = ".xen"
"""The folder of the lab's hosts in the run folder; no guest has a name that begins with a dot."""

ANSWER_TIMEOUT_S = 120.0
SAID_LIMIT = 16 << 20
"""How much of what a command says is taken, in bytes; a listing of guests is far below."""

DYING = ("setpriv", "--pdeathsig", "KILL", "--")
"""Before a command: it is killed when its parent is (setpriv(1), util-linux)."""

# Debian keeps some of Xen's tools out of PATH, by release.
_PATHS = "for p in /usr/sbin /sbin /usr/local/sbin /usr/lib/xen*/bin; do PATH=$PATH:$p; done\n"

_LAB_PROGRAM = "isthmus.qualification.xen.remote"
_LAB_NAME = re.compile(r"[a-z0-9]{1,40}")
_SSH = (
    "ssh", "-oBatchMode=yes", "-oConnectTimeout=20", "-oServerAliveInterval=5",
    "-oServerAliveCountMax=6",
)  # fmt: skip


class UnreachedError(HypervisorError):
    """A host is not reached, or does not answer in time: what it does nobody can tell."""


class Said(Value, frozen=True):
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str


class Runner(Value, frozen=True):
    """A way to a host: its ``address``, and the program that takes a line for the shell there."""

    address: str
    program: tuple[str, ...]

    def command(self, script: str) -> list[str]:
        """The command line here that runs ``script`` in the shell there."""
        return [*self.program, _PATHS + script]

    async def ask(self, script: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Said:
        """Run ``script`` there to its end.

        :raises UnreachedError: the host is not reached, or does not answer in time.
        """
        child = await self.start(script)
        try:
            async with asyncio.timeout(timeout_s):
                out, err = await child.communicate()
        except TimeoutError:
            raise UnreachedError(
                f"{self.address}: no answer within {timeout_s:g} s", remedy="look at the host"
            ) from None
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        said = Said(
            status=child.returncode or 0,
            out=out[:SAID_LIMIT].decode(errors="replace"),
            err=err[:SAID_LIMIT].decode(errors="replace"),
        )
        if said.status == 255:
            raise UnreachedError(
                f"{self.address}: the host is not reached: {_line(said.err)}",
                remedy=f"try: {shlex.join(self.program)} xl info",
            )
        return said

    async def start(
        self,
        script: str,
        *,
        stdin: int = asyncio.subprocess.DEVNULL,
        stdout: int = asyncio.subprocess.PIPE,
        stderr: int = asyncio.subprocess.PIPE,
        dies_with_us: bool = False,
    ) -> asyncio.subprocess.Process:
        """Start ``script`` there.

        :param dies_with_us: the program that leads there is killed when this process is.
        :raises HypervisorError: the program that leads there cannot be started.
        """
        try:
            return await asyncio.create_subprocess_exec(
                *(DYING if dies_with_us else ()),
                *self.command(script),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
        except OSError as error:
            raise HypervisorError(
                f"{self.program[0]}: cannot be started: {error.strerror}", remedy="install it"
            ) from error

    async def told(self, script: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> str:
        """What ``script`` says there.

        :raises HypervisorError: it fails; what it complained of is in the message.
        """
        said = await self.ask(script, timeout_s=timeout_s)
        if said.status != 0:
            raise HypervisorError(
                f"{self.address}: {_line(said.err) or f'exit status {said.status}'}"
            )
        return said.out


def runner_of(address: str) -> Runner:
    """The way to the host of an address.

    :raises InputError: not an address of Xen.
    """
    with contextlib.suppress(ValueError):
        parts = urlsplit(address)
        scheme, _, way = parts.scheme.partition("+")
        # A name that begins with a dash would be an option of ssh.
        name = "" if (parts.hostname or "-").startswith("-") else parts.hostname or ""
        if scheme not in SCHEMES or parts.path not in {"", "/"}:
            pass
        elif not way and not parts.netloc:
            return Runner(address=address, program=("/bin/sh", "-c"))
        elif way == "ssh" and name and not parts.netloc.startswith("-"):
            port = ("-p", str(parts.port)) if parts.port else ()
            user = f"{parts.username}@" if parts.username else ""
            return Runner(address=address, program=(*_SSH, *port, "--", f"{user}{name}"))
        elif way == "lab" and _LAB_NAME.fullmatch(name):
            folder = str(run_folder() / LAB_FOLDER / name)
            return Runner(address=address, program=(sys.executable, "-m", _LAB_PROGRAM, folder))
    raise InputError(
        f"{address}: not the address of a Xen host",
        remedy="xen:/// for this machine, xen+ssh://root@HOST for another one",
    )


def _line(text: str) -> str:
    """The last lines of a complaint as one."""
    return "; ".join(line.strip() for line in text.strip().splitlines()[-4:])[-400:]
