"""A lab host: an emulated machine with real KVM, started, restored, asked and stopped.

A host that has booted is frozen once into the cache (QEMU's own migration stream, into a file), and
every later start of the same image on the same model goes on from there.

Nothing is shared between hosts, and they reach one another as hosts of a data centre do, over TCP:
each dials ``10.0.2.2``, which QEMU's user network takes for this machine's loopback, where the
ports of the others are (QEMU docs, "Network emulation", user mode).
"""

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from isthmus.errors import EnvironmentLackError, HypervisorError, InputError, IsthmusError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.hypervisor.qemu.process import QemuProcess
from isthmus.hypervisor.qemu.stream import read_transfer
from isthmus.qualification.kvm.bochs import Bochs, boot_cd, find_bochs, network, settings
from isthmus.qualification.kvm.channel import AgentGoneError, Channel
from isthmus.qualification.kvm.image import AGENT_PORT, HostImage
from isthmus.qualification.lab.hosts import remove_all
from isthmus.qualification.store import key_of
from isthmus.values import Value, from_json, read_value, to_json

MEMORY_MIB = 1024
BOOT_TIMEOUT_S = 600.0
REPORT_S = 10.0
"""How often a boot that takes long is told of."""

RECIPE = "3"  # a change in how a host is started that older frozen ones do not have
STREAM_PORTS = tuple(range(4440, 4444))
"""Where QEMUs in a host listen for guests that come.  With the agent that is all Bochs forwards."""

MAC = "52:54:00:12:34:58"

_RATE = re.compile(r"tsc: .*?(\d{1,6}(?:\.\d{1,6})?) MHz")

GATEWAY = "10.0.2.2"
"""This machine as a lab host sees it."""


class HostModel(Value, frozen=True):
    """A kind of lab host: its maker (CPUID's vendor), what emulates it, and as what."""

    name: str
    maker: str
    emulator: str
    cpu: str
    about: str


class _Models(Value, frozen=True, forbid_unknown_fields=True):
    schema: int
    source: str
    models: tuple[HostModel, ...]


class LabHost(Value, frozen=True):
    """A lab host that was started.

    ``streams``: the ports of this machine's loopback that lead to ``STREAM_PORTS`` in the host, in
    their order; ``restored``: whether it was taken from the cache; ``seconds``: how long its start
    took; ``kvm``: the modules that are loaded; ``emulator``: what emulates it, with its version;
    ``tsc_khz``: the rate of its TSC by its own measurement, 0 if it told none.
    """

    name: str
    model: HostModel
    process: QemuProcess
    streams: tuple[int, ...]
    restored: bool
    seconds: float
    kernel: str
    qemu: str
    kvm: str
    emulator: str = ""
    tsc_khz: int = 0

    @property
    def folder(self) -> Path:
        """The host's private folder."""
        return self.process.directory

    @property
    def program(self) -> Path:
        """The program that stands for the host's QEMU."""
        return self.folder / "qemu"

    def channel(self) -> Channel:
        """The way to its agent."""
        return Channel.read(self.folder)


def host_models() -> Mapping[str, HostModel]:
    """The kinds of lab hosts by name."""
    data = resources.files("isthmus.qualification.kvm").joinpath("data", "hosts.json").read_bytes()
    return {one.name: one for one in from_json(data, _Models, where="hosts.json").models}


def host_model(name: str) -> HostModel:
    """The kind of that name.

    :raises InputError: there is none.
    """
    models = host_models()
    if name not in models:
        raise InputError(f"{name}: no such lab host", remedy=f"there are {', '.join(models)}")
    return models[name]


async def up(
    model: HostModel,
    image: HostImage,
    qemu: QemuBinary,
    *,
    run: Path,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
    lives_with_parent: bool = False,
) -> LabHost:
    """Start a lab host in a folder of its own below ``run``, and wait until KVM answers in it.

    :param lives_with_parent: it ends with this process.
    :raises HypervisorError: it does not come up, or has no KVM.
    :raises InputError: it is up already.
    """
    folder = run / model.name
    if (found := read(folder)) is not None and found.process.alive():
        raise InputError(f"{model.name}: is up", remedy="isthmus lab kvm down")
    shutil.rmtree(folder, ignore_errors=True)
    process.private_directory(folder)
    begun = time.monotonic()
    frozen = cache / "frozen" / f"{model.name}-{_key(model, image, qemu)}"
    restored = model.emulator == "qemu" and (frozen / "state").exists()
    progress(f"{model.name}: {'waking' if restored else 'booting'}")
    token = _token(frozen) if restored else secrets.token_hex(16)
    outside = free_ports(1 + len(STREAM_PORTS))
    forwards = dict(zip(outside, (AGENT_PORT, *STREAM_PORTS), strict=True))
    channel = Channel(model.name, outside[0], token)
    channel.write(folder)
    _write_program(folder)
    # A lab host has no secrets to defend, and defences are slow to emulate.
    words = f"console=ttyS0 quiet mitigations=off isthmus.token={token} isthmus.host={model.name}"
    if model.emulator == "bochs":
        emulator = await asyncio.to_thread(find_bochs, cache, progress)
        version = f"Bochs {emulator.version}"
        running = await asyncio.to_thread(
            _start_bochs, emulator, model, image, folder, forwards, words, cache, lives_with_parent
        )
    else:
        version = f"QEMU {qemu.version_text}"
        (folder / "qemu.conf").write_text(f'[machine]\nappend = "{words}"\n', encoding="ascii")
        command = _command(model, image, qemu, folder, forwards)
        if restored:
            command += ["-incoming", f"exec:cat {shlex.quote(str(frozen / 'state'))}"]
        running = await process.launch(command, folder, lives_with_parent=lives_with_parent)
    try:
        if restored:
            await _wake(running)
        await answering(running, channel, progress)
        await channel.set_clock(time.time())
        facts = await _facts(channel)
        if model.emulator == "qemu" and not restored:
            await _freeze(running, frozen, token, model.name)
    except BaseException:
        await asyncio.to_thread(running.kill)
        raise
    host = LabHost(
        name=model.name,
        model=model,
        process=running,
        streams=outside[1:],
        restored=restored,
        seconds=time.monotonic() - begun,
        emulator=version,
        tsc_khz=read_tsc_khz(
            await channel.run("/bin/sh", "-c", "dmesg | grep 'tsc: .* MHz' || true")
        ),
        **facts,
    )
    (folder / "host.json").write_bytes(to_json(host))
    progress(f"{host.name}: {host.kvm} on Linux {host.kernel}, {host.seconds:.1f} s")
    return host


def read(folder: Path) -> LabHost | None:
    """The host whose folder this is; None if there is none."""
    path = folder / "host.json"
    return read_value(path, LabHost) if path.exists() else None


def started(run: Path) -> dict[str, LabHost]:
    """The lab hosts of this user that live, by name."""
    hosts = (read(path.parent) for path in sorted(run.glob("*/host.json")))
    return {host.name: host for host in hosts if host is not None and host.process.alive()}


async def down(run: Path) -> list[str]:
    """End all lab hosts with everything that runs in them, and remove their files.

    :returns: the names of those that were up.
    """
    names = list(started(run))
    await remove_all(run)
    return names


def _key(model: HostModel, image: HostImage, qemu: QemuBinary) -> str:
    return key_of(RECIPE, image.key, model.cpu, str(MEMORY_MIB), qemu.version_text)


def _command(
    model: HostModel,
    image: HostImage,
    qemu: QemuBinary,
    folder: Path,
    forwards: Mapping[int, int],
) -> list[str]:
    ports = "".join(
        f",hostfwd=tcp:127.0.0.1:{here}-10.0.2.15:{there}" for here, there in forwards.items()
    )
    return [
        str(qemu.path), "-name", f"guest=lab-{model.name}", "-no-user-config", "-nodefaults",
        "-display", "none", "-machine", "pc", "-accel", "tcg,thread=single", "-cpu", model.cpu,
        "-m", f"{MEMORY_MIB}M", "-rtc", "base=utc,clock=host", "-no-reboot",
        "-chardev", f"socket,id=qmp,path={folder / 'qmp.sock'},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"file,id=console,path={folder / 'console.log'}", "-serial", "chardev:console",
        "-netdev", f"user,id=net{ports}", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-kernel", str(image.kernel), "-initrd", str(image.initrd),
        # Not on the command line: everybody on this machine can read that, and the token is in it.
        "-readconfig", str(folder / "qemu.conf"),
    ]  # fmt: skip


def _start_bochs(
    bochs: Bochs,
    model: HostModel,
    image: HostImage,
    folder: Path,
    forwards: Mapping[int, int],
    words: str,
    cache: Path,
    lives_with_parent: bool,
) -> QemuProcess:
    """Start Bochs; it has no monitor, so nothing of it but its process is used."""
    cd = boot_cd(image, words, cache=cache, scratch=folder, progress=lambda _: None)
    script = folder / "network.conf"
    script.write_text(network(forwards), encoding="ascii")
    bochsrc = folder / "bochsrc"
    bochsrc.write_text(
        settings(bochs, cd, model.cpu, MEMORY_MIB, MAC, folder, script), encoding="utf-8"
    )
    # Debian's Bochs has its debugger built in, which waits for the order to go on.
    orders = folder / "orders"
    orders.write_text("c\n", encoding="ascii")
    command = bochs.command(bochsrc, orders)
    if lives_with_parent:
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    with (folder / "qemu.log").open("wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder,
            env=os.environ | dict(bochs.environment),
        )  # fmt: skip
    return QemuProcess(
        identity=process.ProcessIdentity.of(child.pid), directory=folder, command=tuple(command)
    )


def _write_program(folder: Path) -> None:
    """A program that Isthmus takes for a QEMU of this machine."""
    words = shlex.join([sys.executable, "-m", "isthmus.qualification.kvm.remote", str(folder)])
    path = folder / "qemu"
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    path.chmod(0o700)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback that nobody has at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)


async def _wake(running: QemuProcess) -> None:
    """Let a host go on that was frozen: it stands still, as it did when it was written."""
    async with Monitor.session(running.qmp) as monitor, asyncio.timeout(BOOT_TIMEOUT_S):
        while await monitor.status() == "inmigrate":  # noqa: ASYNC110  (no event tells it)
            await asyncio.sleep(0.02)
        await monitor.execute("cont")


async def answering(
    running: QemuProcess, channel: Channel, progress: Callable[[str], None]
) -> None:
    """Wait until the agent of a host that boots answers.

    :raises HypervisorError: it does not.
    """
    begun = told = time.monotonic()
    while (now := time.monotonic()) < begun + BOOT_TIMEOUT_S:
        if now - told > REPORT_S:
            told = now
            progress(f"{channel.host}: still booting, {now - begun:.0f} s")
        if not running.alive():
            raise HypervisorError(
                f"{channel.host}: its emulator ended: {process.last_words(running.messages)}"
            )
        with contextlib.suppress(AgentGoneError, TimeoutError):
            async with asyncio.timeout(5):
                if await channel.has("/"):
                    return
        await asyncio.sleep(0.1)
    raise HypervisorError(
        f"{channel.host}: does not come up within {BOOT_TIMEOUT_S:g} s",
        remedy=f"its console is in {running.console}",
    )


async def _facts(channel: Channel) -> dict[str, str]:
    """Ask the host what runs it.

    :raises HypervisorError: it has no KVM.
    """
    if not await channel.has("/dev/kvm"):
        raise HypervisorError(f"{channel.host}: KVM does not load", remedy="see its console")
    modules = await channel.run("/bin/sh", "-c", "cut -d' ' -f1 /proc/modules | grep ^kvm_")
    version = await channel.run("/usr/bin/qemu-system-x86_64", "--version")
    return {
        "kernel": (await channel.run("/bin/uname", "-r")).strip(),
        "qemu": version.partition("\n")[0].removeprefix("QEMU emulator version "),
        "kvm": modules.strip().replace("\n", " "),
    }


def read_tsc_khz(said: str) -> int:
    """The rate that a kernel's messages tell (Linux arch/x86/kernel/tsc.c), 0 if none.

    The last of them is the best: it is refined after the boot.
    """
    rates = _RATE.findall(said)
    return round(float(rates[-1]) * 1000) if rates else 0


def _token(frozen: Path) -> str:
    return (frozen / "token").read_text(encoding="utf-8")


async def _freeze(running: QemuProcess, frozen: Path, token: str, name: str) -> None:
    """Keep the booted host in the cache; one that cannot be kept is no error."""
    fresh = frozen.with_name(f".{frozen.name}-{secrets.token_hex(4)}")
    try:
        fresh.mkdir(mode=0o700, parents=True)
        (fresh / "token").write_text(token, encoding="utf-8")
        async with Monitor.session(running.qmp) as monitor:
            await _save(monitor, fresh / "state")
        for older in frozen.parent.glob(f"{name}-*"):
            shutil.rmtree(older, ignore_errors=True)
        fresh.rename(frozen)
    except (OSError, EnvironmentLackError):
        shutil.rmtree(fresh, ignore_errors=True)


async def _save(monitor: Monitor, path: Path) -> None:
    await monitor.execute("stop")
    try:
        await monitor.execute("migrate-set-parameters", {"max-bandwidth": 1 << 34})
        await monitor.execute("migrate", {"uri": f"exec:cat > {shlex.quote(str(path))}"})
        while True:
            transfer = read_transfer(await monitor.execute("query-migrate"))
            if transfer.status == "completed":
                return
            if transfer.status in {"failed", "cancelled"}:
                raise EnvironmentLackError(f"{path}: cannot be written: {transfer.error}")
            await asyncio.sleep(0.02)
    finally:
        with contextlib.suppress(IsthmusError):
            await monitor.execute("cont")
