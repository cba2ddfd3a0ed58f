"""A folder that both libvirt hosts have mounted, each through a file system of its own.

libvirt takes a file system for shared by its type (src/util/virfile.c, virFileIsSharedFSType); the
kernel of a test machine may have neither NFS nor another one of these.  So each host mounts the
folder through bindfs (FUSE), under the name of GlusterFS's.  As over a network, each host then has
a cache of its own, which the other does not see.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.places import cache_folder
from isthmus.qualification.lab import programs
from isthmus.qualification.lab.libvirt_host import LibvirtHost
from isthmus.qualification.store import Made, key_of, obtain

INSIDE = Path("/var/lib/libvirt/shared")
"""Where the hosts have it."""

_PROGRAM = "usr/bin/bindfs"
_LOADER = "ld-linux-x86-64.so.2"


def share(hosts: Iterable[LibvirtHost], folder: Path) -> None:
    """Mount ``folder`` in each host; it goes with the host.  Skips where that cannot be done."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine's kernel has no FUSE")
    try:
        chosen = programs.needed_packages(("bindfs",))

        def make(scratch: Path) -> Made:
            found = programs.files(chosen, (_PROGRAM,), (), scratch=scratch)
            return Made(files={Path(path).name: content for path, content in found.items()})

        key = key_of(*(package.sha256 for package in chosen))
        opened = obtain(cache_folder(), "servers", key, make).folder
    except EnvironmentLackError as error:
        pytest.skip(str(error))
    loader = opened / _LOADER
    loader.chmod(0o755)
    folder.mkdir(exist_ok=True)
    for host in hosts:
        if (host.folder / "lib" / INSIDE.name).exists():
            continue
        (host.folder / "lib" / INSIDE.name).mkdir()
        host.run(
            str(loader), "--library-path", str(opened), str(opened / "bindfs"),
            "-o", "subtype=glusterfs", str(folder), str(INSIDE),
        )  # fmt: skip
