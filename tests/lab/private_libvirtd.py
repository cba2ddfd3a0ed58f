"""A real libvirtd of a test's own: its folders are the test's, and with it end all its guests."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PLACES = {
    "etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "run": "/run/libvirt",
    "cache": "/var/cache/libvirt", "log": "/var/log/libvirt",
}  # fmt: skip
START_S = 180
DRIVER = """\
stdio_handler = "file"
security_driver = "none"
user = "+0"
group = "+0"
dynamic_ownership = 0
cgroup_controllers = []
namespaces = []
"""
DAEMON = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "6f6f6f6f-0000-4000-8000-000000000001"
"""

# The first process of the namespace inherits QEMUs that libvirt has let go of, and must collect
# them: libvirtd itself does not, and then waits 40 s for each to disappear.
_INIT = '{ "$@" & while :; do sleep 1 & wait $!; done; }'


def available(libvirtd: str = "libvirtd") -> bool:
    """Whether one can be started here: that takes root and the daemon."""
    return (
        os.geteuid() == 0
        and shutil.which(libvirtd) is not None
        and shutil.which("unshare") is not None
        and shutil.which("virsh") is not None
        and subprocess.run(
            ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
        ).returncode
        == 0
    )


@contextlib.contextmanager
def private_libvirtd(command: Sequence[str] = ("libvirtd",)) -> Iterator[tuple[str, Path]]:
    """Its URI and its folder, while it runs in mount and PID namespaces of its own."""
    with tempfile.TemporaryDirectory(prefix="lv-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for place in PLACES:
            (folder / place).mkdir()
        (folder / "etc" / "qemu.conf").write_text(DRIVER)
        (folder / "etc" / "libvirtd.conf").write_text(DAEMON)
        for place in PLACES.values():  # Debian's package leaves them to the daemon's first start
            Path(place).mkdir(parents=True, exist_ok=True)
        mounts = " && ".join(f"mount --bind {folder / a} {b}" for a, b in PLACES.items())
        daemon = subprocess.Popen(
            [
                "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
                "--kill-child=KILL", "--mount-proc", "sh", "-c", f"{mounts} && {_INIT}", "sh",
                *command,
            ],
            stdout=(folder / "daemon.log").open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            socket = folder / "run" / "libvirt-sock"
            uri = f"qemu:///system?socket={socket}"
            deadline = time.monotonic() + START_S
            while subprocess.run(
                ["virsh", "-c", uri, "uri"], capture_output=True, check=False
            ).returncode:
                said = (folder / "daemon.log").read_text(errors="replace")
                assert daemon.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.2)
            yield uri, folder
        finally:
            # The PID namespace goes with its first process, and every guest with it.
            daemon.kill()
            daemon.wait()
