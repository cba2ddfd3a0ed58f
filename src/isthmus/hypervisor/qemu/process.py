"""A QEMU process: from a launch specification to a running, identifiable, killable program.

A process is known by its pid *and* its start time, since pids are used again; it is signalled
through a pidfd, so that a pid that changed hands is never hit.  QEMU runs in a session of its own
and outlives the command that started it; what must not outlive its parent is started with
``lives_with_parent`` (setpriv --pdeathsig, from util-linux).

Everything of one process lies in one private folder (0700): the sockets, the console, the stream
of the payload, QEMU's own messages.  Console and payload go to plain files, so that evidence
survives every crash and nobody has to be listening.
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path

from isthmus.errors import EnvironmentLackError, HypervisorError, InputError
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.values import Value

START_TIMEOUT_S = 180.0
_SOCKET_PATH_LIMIT = 107  # bytes; sun_path in linux/un.h is 108 with its NUL


class LaunchSpec(Value, frozen=True):
    """All that decides what machine the guest sees; equal on both sides but for ``cpu``'s host.

    ``cpu`` is QEMU's whole ``-cpu`` argument but for ``paravirtual``, its words for what the
    hypervisor itself offers (QEMU docs/system/i386/hyperv.rst); ``memory_mib`` the guest's memory
    in MiB, ``disk`` an optional raw image shared by both sides.
    """

    qemu: Path
    accelerator: Accelerator
    machine: str
    cpu: str
    vcpus: int
    memory_mib: int
    kernel: Path
    initrd: Path
    command_line: str
    name: str = "guest"
    uuid: str = ""
    disk: Path | None = None
    paravirtual: tuple[str, ...] = ()

    def arguments(self, directory: Path, *, incoming: bool) -> list[str]:
        """The whole command line for a process whose files lie in ``directory``."""
        command = [
            str(self.qemu), "-name", f"guest={_escaped(self.name)},process=isthmus-{self.name[:7]}",
            "-no-user-config", "-nodefaults", "-display", "none",
            "-machine", self.machine, "-accel", self.accelerator.value,
            "-cpu", ",".join([self.cpu, *self.paravirtual]),
            "-smp", str(self.vcpus), "-m", f"{self.memory_mib}M",
            # A guest that resets or powers off stays as evidence instead of vanishing.
            "-action", "reboot=shutdown,shutdown=pause,panic=pause",
            "-rtc", "base=utc,clock=host",
            *_monitor("observe", directory / "observe.sock"),
            *_monitor("look", directory / "look.sock"),  # the translator's, see its lookout
            "-chardev", f"socket,id=gdb,path={_escaped(directory / 'gdb.sock')},server=on,wait=off",
            "-gdb", "chardev:gdb",
            "-chardev", f"file,id=console,path={_escaped(directory / 'console.log')}",
            "-serial", "chardev:console",
            "-device", "virtio-serial-pci,id=reports",
            "-chardev", f"file,id=payload,path={_escaped(directory / 'payload.log')}",
            "-device", "virtserialport,chardev=payload,name=org.isthmus.payload",
            # QEMU opens them in this order: once it listens here, all the files are there.
            *_monitor("qmp", directory / "qmp.sock"),
            "-kernel", str(self.kernel), "-initrd", str(self.initrd),
            "-append", self.command_line,
        ]  # fmt: skip
        if self.uuid:
            command += ["-uuid", self.uuid]
        if self.disk is not None:
            command += [
                "-blockdev",
                f"driver=raw,node-name=disk,file.driver=file,file.filename={_escaped(self.disk)}",
                "-device", "virtio-blk-pci,drive=disk,id=disk0",
            ]  # fmt: skip
        if incoming:
            command += ["-incoming", "defer", "-S"]
        return command


class ProcessIdentity(Value, frozen=True):
    """One process of this machine for certain: pid, and start time in clock ticks since boot."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """The identity of a living process; raises ProcessLookupError if there is none."""
        ticks = _start_ticks(pid)
        if ticks is None:
            raise ProcessLookupError(pid)
        return cls(pid=pid, start_ticks=ticks)

    def alive(self) -> bool:
        """Whether that very process still lives (a zombie does not)."""
        return _start_ticks(self.pid) == self.start_ticks

    def kill(self, *, timeout: float = 10.0) -> None:
        """Kill that very process and wait until it is gone; gone already is no error."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            deadline = time.monotonic() + timeout
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.002)
            # Where it is a child of ours, nobody else takes its exit status.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)
        finally:
            os.close(handle)


class QemuProcess(Value, frozen=True):
    """A QEMU that was started: its identity and the folder of its files."""

    identity: ProcessIdentity
    directory: Path
    command: tuple[str, ...]

    @property
    def qmp(self) -> Path:
        """The monitor of whoever moves the guest."""
        return self.directory / "qmp.sock"

    @property
    def observe(self) -> Path:
        """A second monitor, for looking while a move holds the first."""
        return self.directory / "observe.sock"

    @property
    def gdb(self) -> Path:
        """The debug stub that the translator uses."""
        return self.directory / "gdb.sock"

    @property
    def console(self) -> Path:
        """What the guest printed on its serial console."""
        return self.directory / "console.log"

    @property
    def payload(self) -> Path:
        """The payload's stream of reports."""
        return self.directory / "payload.log"

    @property
    def messages(self) -> Path:
        """What QEMU itself said on its standard error."""
        return self.directory / "qemu.log"

    def alive(self) -> bool:
        """Whether the process still lives."""
        return self.identity.alive()

    def kill(self) -> None:
        """Kill the process and wait until it is gone."""
        self.identity.kill()


async def start(
    spec: LaunchSpec, directory: Path, *, incoming: bool = False, lives_with_parent: bool = False
) -> QemuProcess:
    """Start QEMU for ``spec`` in a private ``directory`` and wait until its monitor answers.

    :param incoming: as the destination of a move: paused, waiting for a stream.
    :raises HypervisorError: QEMU refused to start; carries its own last words.
    :raises InputError: the folder's path is too long for a UNIX socket.
    """
    private_directory(directory)
    return await launch(
        spec.arguments(directory, incoming=incoming), directory, lives_with_parent=lives_with_parent
    )


async def start_bare(qemu: QemuBinary, accelerator: Accelerator, directory: Path) -> QemuProcess:
    """Start a QEMU without a guest, only to ask it what it knows."""
    private_directory(directory)
    command = [
        str(qemu.path), "-no-user-config", "-nodefaults", "-display", "none", "-S",
        "-machine", "pc", "-accel", accelerator.value, *_monitor("qmp", directory / "qmp.sock"),
    ]  # fmt: skip
    return await launch(command, directory, lives_with_parent=True)


def private_directory(path: Path) -> Path:
    """Make ``path`` (with parents) a folder that only this user can enter.

    :raises InputError: it exists and belongs to somebody else, or sockets in it would have too
        long a path, or its path is not UTF-8, or it cannot be made.
    """
    if any("\ud800" <= sign <= "\udfff" for sign in str(path)):
        raise InputError(
            f"{str(path)!r}: not UTF-8", remedy="set ISTHMUS_RUN to a folder whose path is"
        )
    if len(os.fsencode(path / "translator.sock")) > _SOCKET_PATH_LIMIT:
        raise InputError(
            f"{path}: too long a path for UNIX sockets",
            remedy="set ISTHMUS_RUN to a folder with a shorter path",
        )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            raise InputError(
                f"{path}: not a folder of this user", remedy="set ISTHMUS_RUN to another folder"
            )
        if facts.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", remedy="set ISTHMUS_RUN to a folder that can be written"
        ) from error
    return path


async def launch(
    command: list[str], directory: Path, *, lives_with_parent: bool = False
) -> QemuProcess:
    """Start a QEMU by its whole command line; its monitor is ``directory/qmp.sock``.

    :raises HypervisorError: QEMU refused to start; carries its own last words.
    """
    if lives_with_parent:
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    messages = directory / "qemu.log"
    try:
        with messages.open("wb") as log:
            child = subprocess.Popen(  # noqa: ASYNC220  (it must outlive this event loop)
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
    except FileNotFoundError as error:
        raise EnvironmentLackError(
            f"{command[0]}: no such program", remedy="`isthmus doctor` tells what is missing"
        ) from error
    except OSError as error:
        raise HypervisorError(f"{command[0]}: cannot be started: {error.strerror}") from error
    try:
        process = QemuProcess(
            identity=ProcessIdentity.of(child.pid), directory=directory, command=tuple(command)
        )
        await _answering(child, process)
    except BaseException:
        child.kill()
        child.wait()
        raise
    return process


async def _answering(child: subprocess.Popen[bytes], process: QemuProcess) -> None:
    """Wait until the monitor accepts connections, or QEMU ends."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise HypervisorError(
                f"QEMU did not start: {last_words(process.messages)}",
                remedy=f"its command line was: {' '.join(process.command)[:600]}",
            )
        if _listening(process.qmp):
            return
        await asyncio.sleep(0.005)
    raise HypervisorError(f"QEMU did not open its monitor within {START_TIMEOUT_S:g} s")


def _listening(path: Path) -> bool:
    """Whether the socket listens, seen without connecting (that would take the monitor)."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
        wanted = str(path)
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:  # noqa: PTH123
            # Columns: Num RefCount Protocol Flags Type St Inode Path; flag 0x10000 = listening.
            return any(
                line.rstrip("\n").endswith(wanted) and line.split()[3] == "00010000"
                for line in table
            )
    except OSError:
        return False


_LOAD_LINES = 3


def last_words(messages: Path, *, limit: int = 400) -> str:
    """The most telling line of QEMU's own messages.

    Of a stream that it could not load it says what was wrong first, then which device it was in
    (migration/savevm.c, qemu_loadvm_state): all of that.
    """
    try:
        text = messages.read_bytes()[-8192:].decode(errors="replace")
    except OSError:
        return "no message"
    lines = [line.strip().removeprefix("qemu-system-x86_64: ") for line in text.splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if "warning:" not in line] or lines or ["no message"]
    taken = _LOAD_LINES if telling[-1].startswith("load of migration failed") else 1
    return "; ".join(telling[-taken:])[:limit]


def _monitor(name: str, path: Path) -> list[str]:
    return [
        "-chardev", f"socket,id={name},path={_escaped(path)},server=on,wait=off",
        "-mon", f"chardev={name},mode=control",
    ]  # fmt: skip


def _escaped(value: Path | str) -> str:
    """QEMU's option syntax doubles a comma inside a value."""
    return str(value).replace(",", ",,")


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)), None for no process or a zombie.

    Of a process that is killed the first thread may be a zombie while others, a vCPU's among them,
    have not ended yet: it is gone when it is the only one left (field 20).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    gone = fields[0] in {"Z", "X"} and int(fields[17]) <= 1
    return None if gone else int(fields[19])


def find(directory: Path) -> ProcessIdentity | None:
    """The QEMU whose monitor lies in ``directory``, found by its command line, or None.

    For a starter that was killed before it could write down whom it had started.
    """
    return next(iter(mentioning(directory / "qmp.sock")), None)


def serving(path: Path) -> ProcessIdentity | None:
    """The process that listens at a UNIX socket, None where nobody does (unix(7), SO_PEERCRED)."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.settimeout(1)
            asking.connect(os.fsencode(path))
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return ProcessIdentity.of(struct.unpack("3i", found)[0])
        except (OSError, ValueError):
            return None


def mentioning(path: Path) -> list[ProcessIdentity]:
    """The processes of this machine that have ``path`` in their command line, without ourselves."""
    mark = os.fsencode(path)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ProcessLookupError):
            if mark in (entry / "cmdline").read_bytes():
                found.append(ProcessIdentity.of(int(entry.name)))
    return found
