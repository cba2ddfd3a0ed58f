"""A libvirt host on this machine: a real libvirtd in namespaces of its own, whose QEMU plays a CPU.

Each host has a mount namespace (its own ``/etc/libvirt``, ``/var/lib/libvirt``, ``/run/libvirt``,
and ``/etc/pki/qemu`` for certificates), a network namespace, a host name, and a PID namespace,
whose end is the end of its daemon and of all its guests (namespaces(7), pid_namespaces(7)).  Two
hosts are joined by a veth pair; nothing of this machine's own network is changed.  libvirt's UNIX
socket is a file, so it is reached from outside.

How a host plays a processor: its QEMU is a few lines of shell around the machine's own that take
away what the played processor lacks, as KVM does on silicon: features that a guest asks for and the
host lacks are left out in silence, and it is libvirt that looks afterwards and refuses (libvirt:
src/qemu/qemu_process.c, ``qemuProcessUpdateAndVerifyCPU``).
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from isthmus.errors import EnvironmentLackError, HypervisorError, InputError
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator
from isthmus.hypervisor.qemu.models import QemuCpus, read_cpus
from isthmus.hypervisor.qemu.process import ProcessIdentity, private_directory
from isthmus.places import run_folder
from isthmus.values import Value, read_value, to_json

START_TIMEOUT_S = 120.0
"""How long a host or its daemon may take to answer; it takes a second on a machine at rest."""

SCHEMA_VERSION = 1
LINK = "lan0"
NETWORK = "10.231.77"
"""The hosts' network, 10.231.77.0/24: it exists between their namespaces only."""

HOSTS = {"amd": 1, "intel": 2}
"""The hosts' names and numbers in their network."""
_NAMES = "127.0.0.1 localhost\n" + "".join(
    f"{NETWORK}.{number} {name}\n" for name, number in HOSTS.items()
)
"""``/etc/hosts`` in each: a destination tells the source its name (libvirt: migration URI)."""

_PROGRAMS = {
    "libvirtd": "libvirt-daemon libvirt-daemon-driver-qemu",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ip": "iproute2",
}

_DAEMON = """\
listen_tls = 0
listen_tcp = 1
listen_addr = "0.0.0.0"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
host_uuid = "{uuid}"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
keepalive_interval = 1
keepalive_count = 5
"""
"""Nobody but root reaches either socket: the TCP one is in a namespace without another way in."""

_DRIVER = """\
security_driver = "none"
user = "{user}"
group = "{group}"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
keepalive_interval = 1
keepalive_count = 5
"""
"""``keepalive``: either notices within six seconds that it cannot reach the other any more."""

_INSIDE = """\
set -e
hostname "$1"
for pair in etc:/etc/libvirt lib:/var/lib/libvirt run:/run/libvirt cache:/var/cache/libvirt \
    log:/var/log/libvirt pki:/etc/pki/qemu; do
    mount --bind "$2/${pair%%:*}" "${pair#*:}"
done
mkdir -p /run/libvirt/qemu
mount -t tmpfs status /run/libvirt/qemu
mount --bind "$2/etc/hosts" /etc/hosts
if [ -e /dev/kvm ]; then
    : >"$2/no-kvm"
    mount --bind "$2/no-kvm" /dev/kvm
    mount -o remount,bind,ro /dev/kvm
fi
ip link set lo up
: >"$2/inside"
while :; do sleep 3600 & wait; done
"""
"""Runs as the first process of the PID namespace: $1 is the host's name, $2 its folder.

``/run`` is in memory on a real host: a daemon writes a guest's status there at every event.
Without a KVM a host offers what it plays, and nothing of this machine's own processor.  What stands
for it must be a file that cannot be written: where libvirt may open it, it takes KVM for usable,
does not find it in what QEMU told, and asks QEMU anew each time (virQEMUCapsIsValid)."""

_EMULATOR = """\
#!/bin/sh
# Plays {plays}: what that processor lacks is left out, without a word, as KVM would.
previous=
probing=yes
for word do
    shift
    if [ "$previous" = -cpu ]; then
        word=$word{masks}
        probing=
    fi
    previous=$word
    set -- "$@" "$word"
done
if [ $probing ]; then
    set -- "$@" {globals}
fi
exec {qemu} "$@"
"""
_PROGRAM_FOLDER = "/var/lib/libvirt/bin"
"""Where each host has its QEMU, before all others in its daemon's PATH: the same path on all."""


class LibvirtHost(Value, frozen=True):
    """One host that is up.

    ``plays`` is the CPU model of QEMU that it plays, ``anchor`` the process that holds its
    namespaces, ``inside`` the first process in them (both by their numbers out here), ``uuid``
    the host's UUID as libvirt tells it.
    """

    name: str
    folder: Path
    plays: str
    number: int
    uuid: str
    anchor: ProcessIdentity
    inside: ProcessIdentity
    schema: int = SCHEMA_VERSION

    @property
    def uri(self) -> str:
        """The address of its daemon, from anywhere on this machine."""
        return f"qemu+unix:///system?socket={self.folder / 'run/libvirt-sock'}"

    @property
    def address(self) -> str:
        """Its address in the hosts' network."""
        return f"{NETWORK}.{self.number}"

    @property
    def peer_uri(self) -> str:
        """The address of its daemon for the other hosts, over the network between them."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def daemon_log(self) -> Path:
        """What its daemon reports."""
        return self.folder / "log/libvirtd.log"

    def alive(self) -> bool:
        """Whether its namespaces exist."""
        return self.inside.alive()

    def daemon(self) -> ProcessIdentity | None:
        """The daemon's process, None where none runs."""
        with contextlib.suppress(OSError):
            space = _space(self.inside.pid)
            for entry in Path("/proc").iterdir():
                with contextlib.suppress(OSError, ProcessLookupError):
                    if entry.name.isdecimal() and _space(int(entry.name)) == space:
                        words = (entry / "cmdline").read_bytes().split(b"\0")
                        if words[0].endswith(b"/libvirtd"):
                            return ProcessIdentity.of(int(entry.name))
        return None

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine in the host's namespaces; returns what it said.

        :raises HypervisorError: it failed, where ``check``.
        """
        done = subprocess.run(
            [*_enter(self.inside.pid), *command],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=START_TIMEOUT_S,
        )
        if check and done.returncode:
            raise HypervisorError(f"{self.name}: {command[0]}: {done.stderr.strip()[-500:]}")
        return done

    def start_daemon(self) -> None:
        """Start the daemon and wait until it answers; one that runs is left alone.

        :raises HypervisorError: it does not come up.
        """
        if self.daemon() is not None:
            return
        socket = self.folder / "run/libvirt-sock"
        socket.unlink(missing_ok=True)
        said = self.folder / "log/daemon.out"
        with said.open("ab") as out:
            started = subprocess.Popen(
                [
                    *_enter(self.inside.pid),
                    "env", f"PATH={_PROGRAM_FOLDER}:/usr/sbin:/usr/bin:/sbin:/bin",
                    _program("libvirtd"),
                    "--listen", "--pid-file", "/run/libvirt/libvirtd.pid",
                ],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while not socket.exists():
            if started.poll() is not None or time.monotonic() > deadline:
                tail = said.read_bytes()[-500:].decode(errors="replace").strip()
                raise HypervisorError(f"{self.name}: libvirtd does not come up: {tail}")
            time.sleep(0.05)

    def kill_daemon(self, sign: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon and wait until it is gone; its guests run on."""
        daemon = self.daemon()
        if daemon is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(daemon.pid, sign)
        deadline = time.monotonic() + START_TIMEOUT_S
        while daemon.alive():
            if time.monotonic() > deadline:
                raise HypervisorError(f"{self.name}: its daemon does not end")
            time.sleep(0.01)

    def link(self, *, up: bool) -> None:
        """Plug the host's network cable in, or pull it."""
        self.run("ip", "link", "set", LINK, "up" if up else "down")

    def stop(self) -> None:
        """End the host with all its guests; its files stay."""
        for process in (self.inside, self.anchor):
            process.kill()


def lab_folder() -> Path:
    """Where this user's libvirt hosts are; no guest has a name that begins with a dot."""
    return run_folder() / ".libvirt"


def started(folder: Path) -> dict[str, LibvirtHost]:
    """The hosts of ``folder`` that are up, by name."""
    hosts = (read_value(path, LibvirtHost) for path in sorted(folder.glob("*/host.json")))
    return {host.name: host for host in hosts if host.alive()}


def require() -> None:
    """Raise :class:`EnvironmentLackError` naming what this machine lacks for such hosts."""
    missing = [name for name in _PROGRAMS if _which(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(_PROGRAMS[name] for name in missing))
        raise EnvironmentLackError(
            f"the libvirt lab needs {', '.join(missing)}",
            remedy=f"script/setup --libvirt-lab, or apt-get install {packages}",
        )
    if os.geteuid() != 0:
        raise EnvironmentLackError(
            "the libvirt lab needs root: it makes network and mount namespaces",
            remedy="run it as root; nothing outside its namespaces is changed",
        )


def up(
    name: str, plays: str, cpus: QemuCpus, qemu: Path, folder: Path,
    *, lives_with_parent: bool = False,
) -> LibvirtHost:  # fmt: skip
    """Start a host of :data:`HOSTS` that plays the CPU model ``plays``, and its daemon.

    :param cpus: what QEMU's models truly offer, ``max`` among them.
    :param lives_with_parent: it ends with this process.
    :raises EnvironmentLackError: this machine lacks something, see :func:`require`.
    :raises InputError: QEMU has no such model, or a host of that name is up.
    :raises HypervisorError: it does not come up.
    """
    require()
    if name in started(folder):
        raise InputError(f"{name}: this host is up", remedy="isthmus lab libvirt down")
    home = private_directory(private_directory(folder) / name)
    shutil.rmtree(home)
    private_directory(home)
    for part in ("etc", "lib", "run", "cache", "log", "pki"):
        (home / part).mkdir()
    identity = str(uuid.uuid4())
    (home / "etc/libvirtd.conf").write_text(_DAEMON.format(uuid=identity), encoding="utf-8")
    (home / "etc/qemu.conf").write_text(_DRIVER.format(user="+0", group="+0"), encoding="utf-8")
    (home / "etc/hosts").write_text(_NAMES, encoding="utf-8")
    (home / "lib/bin").mkdir()
    emulator = home / "lib/bin/qemu-system-x86_64"
    emulator.write_text(_emulator(plays, cpus, qemu), encoding="utf-8")
    emulator.chmod(0o755)
    for place in ("/etc/libvirt", "/var/lib/libvirt", "/run/libvirt",
                  "/var/cache/libvirt", "/var/log/libvirt", "/etc/pki/qemu"):  # fmt: skip
        Path(place).mkdir(parents=True, exist_ok=True)
    guard = ["setpriv", "--pdeathsig", "KILL"] if lives_with_parent else []
    with (home / "log/anchor.out").open("wb") as out:
        anchor = subprocess.Popen(
            [
                *guard, "unshare", "--mount", "--net", "--uts", "--pid", "--fork",
                "--mount-proc", "--kill-child=SIGKILL",
                "sh", "-c", _INSIDE, "sh", name, str(home),
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (home / "inside").exists():
        if anchor.poll() is not None or time.monotonic() > deadline:
            anchor.kill()
            said = (home / "log/anchor.out").read_bytes()[-500:].decode(errors="replace")
            raise HypervisorError(f"{name}: its namespaces cannot be made: {said.strip()}")
        time.sleep(0.02)
    host = LibvirtHost(
        name=name,
        folder=home,
        plays=plays,
        number=HOSTS[name],
        uuid=identity,
        anchor=ProcessIdentity.of(anchor.pid),
        inside=ProcessIdentity.of(_children(anchor.pid)[0]),
    )
    try:
        host.start_daemon()
    except BaseException:
        host.stop()
        raise
    (home / "host.json").write_bytes(to_json(host))
    return host


def up_both(
    plays: Mapping[str, str], qemu: str, folder: Path, *, lives_with_parent: bool = False
) -> dict[str, LibvirtHost]:
    """Start all of :data:`HOSTS` that ``plays`` names, with the CPU models they play, joined.

    :param qemu: the QEMU to use, a name on PATH or a path.
    :raises IsthmusError: as :func:`up`; then none is left.
    """
    require()
    program = find_qemu(qemu)
    cpus = asyncio.run(read_cpus(program, Accelerator.TCG))
    hosts: dict[str, LibvirtHost] = {}
    try:
        for name, model in plays.items():
            hosts[name] = up(
                name, model, cpus, program.path, folder, lives_with_parent=lives_with_parent
            )
        connect(hosts["amd"], hosts["intel"])
    except BaseException:
        for host in hosts.values():
            host.stop()
        raise
    return hosts


def connect(one: LibvirtHost, other: LibvirtHost) -> None:
    """Lay a network cable between two hosts.

    :raises HypervisorError: the kernel refuses.
    """
    done = subprocess.run(
        [
            _program("ip"), "link", "add", LINK, "netns", str(one.inside.pid),
            "type", "veth", "peer", "name", LINK, "netns", str(other.inside.pid),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise HypervisorError(f"no cable between the hosts: {done.stderr.strip()[-300:]}")
    for host in (one, other):
        host.run("ip", "address", "add", f"{host.address}/24", "dev", LINK)
        host.link(up=True)


def _emulator(plays: str, cpus: QemuCpus, qemu: Path) -> str:
    """The program that stands for the host's QEMU."""
    offer = cpus.offered(plays)
    lacking = sorted(cpus.offered("max").features - offer.features)
    shown: Mapping[str, object] = {
        "vendor": offer.vendor,
        "family": offer.family,
        "model": offer.model,
        "stepping": offer.stepping,
        **dict.fromkeys(lacking, "off"),
    }
    # When libvirt asks what the host is, it asks for the CPU "max".
    globals_ = " ".join(f"-global 'max-x86_64-cpu.{name}={value}'" for name, value in shown.items())
    masks = "".join(f",{name}=off" for name in lacking)
    return _EMULATOR.format(plays=plays, masks=f"'{masks}'", globals=globals_, qemu=qemu)


def _enter(pid: int) -> Sequence[str]:
    return (_program("nsenter"), "--target", str(pid), "--mount", "--net", "--uts", "--pid", "--")


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _program(name: str) -> str:
    return _which(name) or name


def _space(pid: int) -> str:
    """The PID namespace of a process."""
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def _children(pid: int) -> list[int]:
    """The children of a process (proc(5), task/TID/children)."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]
    return []
