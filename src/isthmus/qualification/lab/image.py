"""A lab guest's image: a kernel and an initramfs with busybox and the payload, cached by content.

The key of an image is the hash of everything that goes into it: the payload's sources and flags,
the init script, busybox, the kernel.  An image is written whole under another name and then
renamed; what does not match its own checksums is made again.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.qualification.lab.initramfs import Entry, archive, file, folder
from isthmus.qualification.lab.kernel import GuestKernel, fetch_kernel
from isthmus.qualification.payload.build import FLAGS, build_payload, sources
from isthmus.values import Value, read_value, to_json

INIT = b"""#!/bin/busybox sh
# Mount what programs need, load the modules in their order, start the payload.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module.ko"
done < /modules/order
tries=0
while [ ! -e /dev/vport1p1 ] && [ ! -e /dev/vport0p1 ] && [ $tries -lt 50 ]; do
    /bin/busybox usleep 20000
    tries=$((tries + 1))
done
echo "isthmus: guest is up, $(/bin/busybox uname -r)"
/bin/payload
echo "isthmus: payload ended with status $?"
while :; do /bin/busybox sleep 3600; done
"""


class GuestImage(Value, frozen=True):
    """The two files a guest boots from; ``key`` is the hash of all that went into them."""

    kernel: Path
    initrd: Path
    release: str
    key: str
    kernel_sha256: str = ""
    initrd_sha256: str = ""


def command_line(**options: object) -> str:
    """The kernel command line of a lab guest; ``options`` become ``isthmus.NAME=VALUE`` words.

    ``tsc=reliable clocksource=tsc`` makes the kernel read its clock by RDTSC or RDTSCP, as it does
    on real hosts of one kind; ``panic=-1`` resets at once, which QEMU shows as a shutdown.
    """
    words = ["console=ttyS0", "quiet", "panic=-1", "tsc=reliable", "clocksource=tsc"]
    words += [f"isthmus.{name}={value}" for name, value in options.items()]
    return " ".join(words)


def build_image(
    kernel: str | None = None, *, cache: Path, progress: Callable[[str], None] = lambda _: None
) -> GuestImage:
    """Build the image, or take it from ``cache``.

    :param kernel: see :func:`isthmus.qualification.lab.kernel.fetch_kernel`.
    :raises EnvironmentLackError: busybox, a compiler, apt or the disk's space is missing.
    """
    busybox = _busybox()
    digest = hashlib.sha256(repr((kernel, FLAGS)).encode() + INIT + busybox)
    for name, text in sorted(sources().items()):
        digest.update(name.encode() + text)
    key = digest.hexdigest()[:24]
    home = cache / "images" / key
    try:
        with _lock(cache / "images"):
            cached = _cached(home)
            if cached is not None:
                return cached
            guest_kernel = fetch_kernel(kernel, progress=progress)
            progress("building the guest image")
            return _build(home, key, guest_kernel, busybox)
    except OSError as error:
        raise EnvironmentLackError(
            f"{cache}: the guest image cannot be written: {error.strerror}",
            remedy="free some space, or set ISTHMUS_CACHE to another folder",
        ) from error


def _build(home: Path, key: str, kernel: GuestKernel, busybox: bytes) -> GuestImage:
    with tempfile.TemporaryDirectory(prefix="build-", dir=home.parent) as scratch:
        work = Path(scratch)
        payload = build_payload(work).read_bytes()
        initrd = archive(_entries(kernel, busybox, payload))
        fresh = work / "image"
        fresh.mkdir()
        (fresh / "vmlinuz").write_bytes(kernel.vmlinuz)
        (fresh / "initrd").write_bytes(initrd)
        (fresh / "payload").write_bytes(payload)
        image = GuestImage(
            kernel=home / "vmlinuz",
            initrd=home / "initrd",
            release=kernel.release,
            key=key,
            kernel_sha256=hashlib.sha256(kernel.vmlinuz).hexdigest(),
            initrd_sha256=hashlib.sha256(initrd).hexdigest(),
        )
        (fresh / "image.json").write_bytes(to_json(image))
        if home.exists():
            shutil.rmtree(home)
        fresh.rename(home)
    return image


def _entries(kernel: GuestKernel, busybox: bytes, payload: bytes) -> Iterator[Entry]:
    for path in ("bin", "dev", "proc", "sys", "modules"):
        yield folder(path)
    yield file("init", INIT, executable=True)
    yield file("bin/busybox", busybox, executable=True)
    yield file("bin/payload", payload, executable=True)
    for name, data in kernel.modules:
        yield file(f"modules/{name}.ko", data)
    order = "".join(f"{name}\n" for name, _ in kernel.modules)
    yield file("modules/order", order.encode())


def _cached(home: Path) -> GuestImage | None:
    """The image in the cache, if it is whole."""
    with contextlib.suppress(InputError, OSError, msgspec.MsgspecError):
        image = read_value(home / "image.json", GuestImage)
        sums = (_sha256(home / "vmlinuz"), _sha256(home / "initrd"))
        if sums == (image.kernel_sha256, image.initrd_sha256):
            return msgspec.structs.replace(image, kernel=home / "vmlinuz", initrd=home / "initrd")
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _busybox() -> bytes:
    for name in ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/initramfs-tools/bin/busybox"):
        path = Path(name)
        if path.is_file():
            data = path.read_bytes()
            # A dynamically linked one names its loader and would not run in the guest.
            if b"/ld-linux" not in data:
                return data
    raise EnvironmentLackError(
        "no static busybox on this machine", remedy="apt-get install busybox-static"
    )


@contextlib.contextmanager
def _lock(folder_path: Path) -> Iterator[None]:
    folder_path.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(folder_path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
