"""ssh to the hosts of the libvirt lab: a real server in each, so that ``qemu+ssh://`` can be tried.

The server is Dropbear, opened from its package and not installed.  In each host it knows one user,
root, and one key, which is made anew.  Its home and its ``/etc/passwd`` are in a mount namespace of
its own, so nothing of this machine's is changed or let in.

The same address serves from this machine and from inside the hosts (a source's daemon dials its
destination's): the ``ssh`` named in it has a ProxyCommand that knows where it runs, enters the
host's network if need be (nsenter(1)) and hands the connected socket over (ssh_config(5),
ProxyUseFdpass), so no process stands between.
"""

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from isthmus.errors import EnvironmentLackError, HypervisorError
from isthmus.qualification.lab import packages, programs
from isthmus.qualification.lab.libvirt_host import START_TIMEOUT_S, LibvirtHost
from isthmus.qualification.store import Made, key_of, obtain

PACKAGE = "dropbear-bin"
ALIASES = {"amd": "amd amd1", "intel": "intel intel1"}
"""What each host may be called in an address: its own name, and that of the user's guide."""

_PROGRAMS = ("usr/sbin/dropbear", "usr/bin/dropbearkey")
_LOADER = "ld-linux-x86-64.so.2"
_PORT = 22

_SERVE = """\
set -e
mount --bind "$1/passwd" /etc/passwd
run() {{ name=$1; shift; "$programs/{loader}" --library-path "$programs" "$programs/$name" "$@"; }}
programs=$2
exec >>"$1/log" 2>&1 </dev/null
run dropbearkey -t ed25519 -f "$1/host-key"
run dropbear -E -s -p {port} -r "$1/host-key" -P "$1/pid"
"""
"""Run by ``unshare --mount``: $1 is the server's folder, $2 that of its program.  No passwords."""

_CONFIG = """\
Host {names}
  ProxyCommand {relay} {pid} {address} {port}
  ProxyUseFdpass yes
  IdentityFile {key}
  IdentitiesOnly yes
  BatchMode yes
  ServerAliveInterval 5
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR

"""

_RELAY = """\
#!{python}
\"\"\"Connect to a host of the libvirt lab and give the socket to ssh: relay PID ADDRESS PORT.\"\"\"
import os, socket, sys

pid, address, port = sys.argv[1:4]
inside = any(
    os.path.exists(run) and os.path.samefile("/run/libvirt", run) for run in {runs!r}
)
if pid != "0" and not inside:
    again = [sys.argv[0], "0", address, port]
    os.execvp("nsenter", ["nsenter", "--target", pid, "--net", "--", *again])
connected = socket.create_connection((address, int(port)), timeout=30)
connected.setblocking(True)
socket.send_fds(socket.socket(fileno=os.dup(1)), [b"."], [connected.fileno()])
"""


def require() -> None:
    """Raise :class:`EnvironmentLackError` naming what this machine lacks for it."""
    lacking = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    if lacking:
        raise EnvironmentLackError(
            f"ssh to the libvirt lab's hosts needs {', '.join(lacking)}",
            remedy="apt-get install openssh-client",
        )
    if packages.find(PACKAGE) is None:
        raise EnvironmentLackError(
            f"apt's lists have no {PACKAGE}", remedy="run `apt-get update` as root"
        )


def serve(hosts: Mapping[str, LibvirtHost], cache: Path) -> dict[str, str]:
    """Start a server in each host; returns the hosts' ``qemu+ssh`` addresses by name.

    :raises EnvironmentLackError: see :func:`require`; or the package cannot be had.
    :raises HypervisorError: a server does not come up.
    """
    require()
    program = _opened(cache)
    folder = folder_of(hosts)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    key = folder / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "isthmus-lab", "-f", str(key)],
        check=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    public = key.with_suffix(".pub").read_text(encoding="ascii")
    for host in hosts.values():
        _start(host, program, public)
    relay = _executable(
        folder / "relay",
        _RELAY.format(
            python=sys.executable, runs=[str(host.folder / "run") for host in hosts.values()]
        ),
    )
    config = folder / "config"
    config.write_text(
        "".join(
            _CONFIG.format(
                names=ALIASES.get(host.name, host.name), relay=shlex.quote(str(relay)),
                pid=host.inside.pid, address=host.address, port=_PORT, key=key,
            )
            for host in hosts.values()
        ),
        encoding="utf-8",
    )  # fmt: skip
    _executable(
        folder / "ssh",
        f'#!/bin/sh\nexec {shutil.which("ssh")} -F {shlex.quote(str(config))} "$@"\n',
    )
    return addresses(hosts)


def folder_of(hosts: Mapping[str, LibvirtHost]) -> Path:
    """Where the key and the configuration are: beside the hosts' folders."""
    return next(iter(hosts.values())).folder.parent / "ssh"


def addresses(hosts: Mapping[str, LibvirtHost]) -> dict[str, str]:
    """The hosts' ``qemu+ssh`` addresses (libvirt: docs/uri.rst); none where there is no server."""
    return {
        name: f"qemu+ssh://root@{name}/system?command={folder_of(hosts) / 'ssh'}"
        for name, host in hosts.items()
        if _server(host).joinpath("pid").exists()
    }


def _server(host: LibvirtHost) -> Path:
    """The folder of a host's server, which goes with the host's own."""
    return host.folder / "sshd"


def _start(host: LibvirtHost, program: Path, public: str) -> None:
    folder = _server(host)
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    home.chmod(0o700)
    (home / ".ssh" / "authorized_keys").write_text(public, encoding="ascii")
    (folder / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/sh\n", encoding="utf-8")
    script = _SERVE.format(loader=_LOADER, port=_PORT)
    host.run("unshare", "--mount", "sh", "-c", script, "sh", str(folder), str(program))
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (folder / "pid").exists():
        if time.monotonic() > deadline:
            said = (folder / "log").read_text(encoding="utf-8", errors="replace")[-500:].strip()
            raise HypervisorError(f"{host.name}: its ssh server does not come up: {said}")
        time.sleep(0.05)


def _opened(cache: Path) -> Path:
    """The folder of the server with the libraries that it came with."""
    chosen = programs.needed_packages((PACKAGE,))

    def make(scratch: Path) -> Made:
        found = programs.files(chosen, _PROGRAMS, (), scratch=scratch)
        return Made(files={Path(name).name: content for name, content in found.items()})

    key = key_of(*(package.sha256 for package in chosen), *_PROGRAMS)
    stored = obtain(cache, "servers", key, make)
    (stored.folder / _LOADER).chmod(0o755)
    return stored.folder


def _executable(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    path.chmod(0o700)
    return path
