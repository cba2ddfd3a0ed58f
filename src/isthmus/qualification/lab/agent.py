"""QEMU's guest agent for a lab guest, out of its Debian package.

The guest has no udev, so the agent's port is found by its name in sysfs (Linux:
drivers/char/virtio_console.c, ``show_port_name``; QEMU: docs/interop/qemu-ga.rst).
"""

from collections.abc import Callable
from pathlib import Path

from isthmus.qualification.lab import programs
from isthmus.qualification.lab.initramfs import Entry, file, folder, link
from isthmus.qualification.store import Made, key_of, obtain

PACKAGE = "qemu-guest-agent"
PORT = "org.qemu.guest_agent.0"
"""The name of its port, by which libvirt knows it (libvirt: docs/formatdomain.rst, "Channel")."""

_PROGRAM = "usr/sbin/qemu-ga"
_LIBRARIES = "lib/x86_64-linux-gnu"
_FOLDERS = ("beside", "lib64", _LIBRARIES, "run", "sbin", "usr", "usr/sbin")
_START = f"""\
#!/bin/sh
while :; do
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name")" = {PORT} ]; then
            exec /{_PROGRAM} --method=virtio-serial --path="/dev/${{port##*/}}" --statedir=/run
        fi
    done
    sleep 1
done
"""


def agent_entries(
    cache: Path, progress: Callable[[str], None] = lambda _: None
) -> tuple[Entry, ...]:
    """What an image has besides, so that the agent runs in the guest: see ``build_image``.

    :raises EnvironmentLackError: apt's lists have no such package, or it cannot be downloaded.
    """
    chosen = programs.needed_packages((PACKAGE,))

    def make(scratch: Path) -> Made:
        progress(f"fetching {PACKAGE} and its libraries")
        found = programs.files(chosen, (_PROGRAM,), (), scratch=scratch)
        return Made(files={Path(path).name: content for path, content in found.items()})

    stored = obtain(cache, "agents", key_of(*(package.sha256 for package in chosen)), make)
    files = {_place(name): stored.read(name) for name in sorted(stored.manifest.files)}
    return (
        *(folder(path) for path in _FOLDERS),
        *(file(path, content, executable=True) for path, content in files.items()),
        link("sbin/hwclock", "/bin/busybox"),  # by which the agent sets the clock
        file("beside/agent", _START.encode(), executable=True),
    )


def _place(name: str) -> str:
    """Where Debian has a file of this name: the program, its loader, or a library."""
    if name == Path(_PROGRAM).name:
        return _PROGRAM
    return f"{'lib64' if name.startswith('ld-linux') else _LIBRARIES}/{name}"
