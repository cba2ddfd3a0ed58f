"""A lab host with Xen: an emulated machine with the real hypervisor and a dom0, up and down.

dom0 is in memory and is reached by the agent of :mod:`isthmus.qualification.kvm`, over a port of
this machine's loopback that QEMU forwards.  What Isthmus runs in dom0 it runs through
:mod:`isthmus.qualification.xen.remote`, as it runs the same over ssh on a host of a data centre.
"""

import asyncio
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import msgspec

from isthmus.errors import EnvironmentLackError, HypervisorError, InputError
from isthmus.hypervisor.qemu import process
from isthmus.hypervisor.qemu.binary import QemuBinary
from isthmus.hypervisor.qemu.process import QemuProcess
from isthmus.hypervisor.xen.runner import LAB_FOLDER
from isthmus.places import run_folder
from isthmus.qualification.kvm import host as kvm_host
from isthmus.qualification.kvm.channel import Channel
from isthmus.qualification.kvm.image import AGENT_PORT
from isthmus.qualification.lab.hosts import remove_all
from isthmus.qualification.lab.xen_host import DOM0_MIB, HOST_MIB, XenHost, build_host
from isthmus.qualification.xen.hypervisor import rebuilt
from isthmus.values import Value, from_json, read_value, to_json

DOM0 = "10.0.2.15"
"""dom0's address in QEMU's user network."""

SCHEME = "xen+lab"
"""What the address of a lab host begins with: ``xen+lab://NAME``."""


class HostModel(Value, frozen=True):
    """A kind of lab host: its maker (CPUID's vendor), QEMU's CPU model, words for Xen itself."""

    name: str
    maker: str
    cpu: str
    about: str
    xen: str = ""


class _Models(Value, frozen=True, forbid_unknown_fields=True):
    schema: int
    source: str
    models: tuple[HostModel, ...]


class LabHost(Value, frozen=True):
    """A lab host that was started.

    ``xen``: the hypervisor's version; ``live``: whether it can move PV guests live, which Debian's
    own hypervisor cannot; ``kernel``: dom0's; ``ssh``: the port of this machine's loopback that
    leads to port 22 of dom0, where nobody listens at first; ``seconds``: how long its start took.
    """

    name: str
    model: HostModel
    process: QemuProcess
    xen: str
    kernel: str
    live: bool
    ssh: int
    seconds: float

    @property
    def folder(self) -> Path:
        """The host's private folder."""
        return self.process.directory

    @property
    def address(self) -> str:
        """How it is named where hosts are named."""
        return f"{SCHEME}://{self.name}"

    def channel(self) -> Channel:
        """The way to its agent."""
        return Channel.read(self.folder)


def lab_folder() -> Path:
    """Where this user's Xen hosts are."""
    return run_folder() / LAB_FOLDER


def host_models() -> Mapping[str, HostModel]:
    """The kinds of lab hosts by name."""
    data = resources.files("isthmus.qualification.xen").joinpath("data", "hosts.json").read_bytes()
    return {one.name: one for one in from_json(data, _Models, where="hosts.json").models}


def host_model(name: str) -> HostModel:
    """The kind of that name.

    :raises InputError: there is none.
    """
    models = host_models()
    if name not in models:
        raise InputError(f"{name}: no such Xen host", remedy=f"there are {', '.join(models)}")
    return models[name]


def image(
    *, cache: Path, packaged: bool = False, progress: Callable[[str], None] = lambda _: None
) -> tuple[XenHost, bool]:
    """What a host boots from, and whether it can move PV guests live.

    :param packaged: take Debian's own hypervisor, which cannot.
    :raises EnvironmentLackError: packages are missing.
    """
    host = build_host(cache=cache, progress=progress)
    if packaged:
        return host, False
    release = ".".join(host.version.split(".")[:2])
    try:
        own = rebuilt(release, cache=cache, progress=progress)
    except EnvironmentLackError as error:
        progress(f"Xen cannot be rebuilt here, so PV guests cannot move live: {error}")
        return host, False
    return msgspec.structs.replace(host, xen=own.folder / "xen"), True


async def up(
    model: HostModel,
    host: XenHost,
    qemu: QemuBinary,
    *,
    live: bool,
    run: Path,
    progress: Callable[[str], None] = lambda _: None,
    lives_with_parent: bool = False,
) -> LabHost:
    """Start a lab host in a folder of its own below ``run``, and wait until ``xl`` answers in it.

    :param lives_with_parent: it ends with this process.
    :raises HypervisorError: it does not come up.
    :raises InputError: it is up already.
    """
    folder = run / model.name
    if (found := read(folder)) is not None and found.process.alive():
        raise InputError(f"{model.name}: is up", remedy="isthmus lab xen down")
    shutil.rmtree(folder, ignore_errors=True)
    process.private_directory(folder)
    begun = time.monotonic()
    progress(f"{model.name}: booting")
    port, ssh = kvm_host.free_ports(2)
    channel = Channel(model.name, port, secrets.token_hex(16), "xen")
    channel.write(folder)
    words = f"console=hvc0 quiet isthmus.token={channel.token} isthmus.host={model.name}"
    # Not on the command line: everybody on this machine can read that, and the token is in it.
    (folder / "qemu.conf").write_text(
        f'[machine]\ninitrd = "{host.kernel} {words},{host.initrd}"\n', encoding="utf-8"
    )
    forwards = (
        f"hostfwd=tcp:127.0.0.1:{port}-{DOM0}:{AGENT_PORT},hostfwd=tcp:127.0.0.1:{ssh}-{DOM0}:22"
    )
    command = _command(model, host, qemu, folder, forwards)
    running = await process.launch(command, folder, lives_with_parent=lives_with_parent)
    try:
        await kvm_host.answering(running, channel, progress)
        await channel.set_clock(time.time())
        facts = await _facts(channel)
    except BaseException:
        await asyncio.to_thread(running.kill)
        raise
    lab = LabHost(
        name=model.name,
        model=model,
        process=running,
        live=live,
        ssh=ssh,
        seconds=time.monotonic() - begun,
        **facts,
    )
    (folder / "host.json").write_bytes(to_json(lab))
    progress(f"{lab.name}: Xen {lab.xen}, dom0 Linux {lab.kernel}, {lab.seconds:.1f} s")
    return lab


def read(folder: Path) -> LabHost | None:
    """The host whose folder this is; None if there is none."""
    path = folder / "host.json"
    return read_value(path, LabHost) if path.exists() else None


def started(run: Path) -> dict[str, LabHost]:
    """The Xen hosts of this user that live, by name."""
    hosts = (read(path.parent) for path in sorted(run.glob("*/host.json")))
    return {host.name: host for host in hosts if host is not None and host.process.alive()}


def named(name: str) -> LabHost:
    """The host of a name or an address that is up.

    :raises InputError: there is none.
    """
    hosts = started(lab_folder())
    short = name.removeprefix(f"{SCHEME}://")
    if short not in hosts:
        raise InputError(
            f"{name}: no Xen host of that name is up",
            remedy=f"up are: {', '.join(hosts) or 'none'}; isthmus lab xen up starts others",
        )
    return hosts[short]


async def down(run: Path) -> list[str]:
    """End all Xen hosts with the guests in them, and remove their files; the names of those up."""
    names = list(started(run))
    await remove_all(run)
    return names


def _command(
    model: HostModel, host: XenHost, qemu: QemuBinary, folder: Path, forwards: str
) -> list[str]:
    xen = f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MIB}M guest_loglvl=all {model.xen}"
    return [
        str(qemu.path), "-name", f"guest=xen-{model.name}", "-no-user-config", "-nodefaults",
        "-display", "none", "-machine", "pc", "-accel", "tcg,thread=single", "-cpu", model.cpu,
        "-smp", "1", "-m", f"{HOST_MIB}M", "-rtc", "base=utc,clock=host", "-no-reboot",
        "-chardev", f"socket,id=qmp,path={folder / 'qmp.sock'},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"file,id=console,path={folder / 'console.log'}", "-serial", "chardev:console",
        "-netdev", f"user,id=net,{forwards}",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-kernel", str(host.xen), "-append", xen.strip(),
        "-readconfig", str(folder / "qemu.conf"),
    ]  # fmt: skip


async def _facts(channel: Channel) -> dict[str, str]:
    """Ask dom0 what runs it.

    :raises HypervisorError: the toolstack does not answer.
    """
    told = {}
    for line in (await channel.run("/bin/sh", "-c", "xl info; uname -r")).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            told[name.strip()] = value.strip()
        else:
            told["uname"] = name.strip()
    if "xen_version" not in told:
        raise HypervisorError(f"{channel.host}: xl does not answer", remedy=shlex.join(told))
    return {"xen": told["xen_version"], "kernel": told["uname"]}
