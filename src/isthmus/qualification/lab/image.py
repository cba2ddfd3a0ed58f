"""A lab guest's image: a kernel, and an initramfs with busybox and the payload.

The key of an image is the hash of everything that goes into it: the kernel and its modules,
busybox, the payload's program, the init script.  The same inputs give the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.headers import inside_module
from isthmus.qualification.lab.initramfs import Entry, archive, file, folder, link
from isthmus.qualification.lab.kernel import GuestKernel, fetch_kernel
from isthmus.qualification.payload.build import build_payload
from isthmus.qualification.store import Made, Stored, key_of, obtain
from isthmus.translate.inside import build
from isthmus.values import Value, read_bytes

# What lies in /beside runs beside the payload, reports on the console, and chooses its code by
# CPUID, as programs do.
# GLIBC_TUNABLES: glibc picks its string functions by CPUID at start; without this the payload
# would die in a memcpy of AVX2 instead of in the instruction under test, and so would the
# supervisor that has to tell of it.  print-fatal-signals makes the kernel print the registers and
# code bytes of a program that dies by a fault.
INIT = b"""#!/bin/sh
# Mount what programs need, load the modules in their order, become the payload.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
while read -r module; do
    insmod "/lib/modules/$module.ko"
done < /lib/modules/order
echo 1 > /proc/sys/kernel/print-fatal-signals
echo 7 > /proc/sys/kernel/printk
echo "isthmus: guest is up"
case " $(cat /proc/cmdline) " in
*" isthmus.shell=1 "*) setsid sh -c 'exec sh < /dev/ttyS0 > /dev/ttyS0 2>&1' & ;;
esac
for program in /beside/*; do
    [ -x "$program" ] && "$program" > /dev/ttyS0 2>&1 &
done
export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-SSE4_2,-SSE4_1,-SSSE3,-ERMS
exec /bin/payload
"""

APPLETS = (
    "cat", "dmesg", "echo", "free", "grep", "hexdump", "insmod", "kill", "ls", "lsmod", "mkdir",
    "mount", "poweroff", "ps", "reboot", "rmmod", "setsid", "sh", "sleep", "top", "uname",
)  # fmt: skip

BUSYBOX_LIMIT = 64 << 20


class GuestImage(Value, frozen=True):
    """The two files a guest boots from; ``key`` is the hash of all that went into them."""

    kernel: Path
    initrd: Path
    release: str
    key: str


def command_line(options: Mapping[str, object] | None = None, **more: object) -> str:
    """The kernel command line of a lab guest; options become ``isthmus.NAME=VALUE`` words.

    ``tsc=reliable clocksource=tsc`` makes the kernel read its clock by RDTSC or RDTSCP, as it does
    on real hosts of one kind; ``panic=-1`` resets at once, which QEMU can turn into a pause.
    What each option means: ``docs/payload.md``.

    :raises InputError: an option's name or value cannot stand on a kernel command line.
    """
    words = ["console=ttyS0", "quiet", "panic=-1", "tsc=reliable", "clocksource=tsc"]
    for name, value in {**(options or {}), **more}.items():
        word = f"isthmus.{name}={int(value) if isinstance(value, bool) else value}"
        if not word.isascii() or not word.isprintable() or set(word) & set(" \"'"):
            raise InputError(f"{name}={value}: cannot stand on a kernel command line")
        words.append(word)
    return " ".join(words)


def build_image(
    kernel: str | None = None,
    *,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
    more: Sequence[Entry] = (),
    inside: bool = False,
) -> GuestImage:
    """Build the image, or take it from ``cache``; safe with several builders at once.

    :param kernel: see :func:`isthmus.qualification.lab.kernel.fetch_kernel`.
    :param progress: is told each step that takes time.
    :param more: files and folders besides; programs in the folder ``beside`` are started, too.
    :param inside: load the translator's module, and mount debugfs, where it counts.
    :raises EnvironmentLackError: busybox, a compiler, apt or the disk's space is missing.
    :raises InputError: ``kernel`` names nothing usable.
    """
    guest_kernel = fetch_kernel(kernel, cache=cache, progress=progress)
    if inside:
        module = inside_module(guest_kernel.release, cache=cache, progress=progress)
        modules = (*guest_kernel.modules, (build.NAME, module))
        guest_kernel = msgspec.structs.replace(guest_kernel, modules=modules)
    busybox = static_busybox(cache, progress)
    payload = build_payload(cache, progress=progress).read_bytes()
    image = read_bytes(guest_kernel.vmlinuz, limit=256 << 20)
    initrd = archive([*_entries(guest_kernel, busybox, payload), *more])
    key = key_of(image, initrd)

    def make(_scratch: Path) -> Made:
        progress(f"building the guest image for Linux {guest_kernel.release}")
        return Made(
            files={"vmlinuz": image, "initrd": initrd}, facts={"release": guest_kernel.release}
        )

    stored = obtain(cache, "images", key, make)
    return _image(stored, key)


def _image(stored: Stored, key: str) -> GuestImage:
    return GuestImage(
        kernel=stored.folder / "vmlinuz",
        initrd=stored.folder / "initrd",
        release=stored.manifest.facts["release"],
        key=key,
    )


def _entries(kernel: GuestKernel, busybox: bytes, payload: bytes) -> Iterator[Entry]:
    for path in ("bin", "dev", "lib", "lib/modules", "proc", "sys"):
        yield folder(path)
    yield file("init", INIT, executable=True)
    yield file("bin/busybox", busybox, executable=True)
    for applet in APPLETS:
        yield link(f"bin/{applet}", "busybox")
    yield file("bin/payload", payload, executable=True)
    for name, content in kernel.modules:
        yield file(f"lib/modules/{name}.ko", content)
    order = "".join(f"{name}\n" for name, _ in kernel.modules)
    yield file("lib/modules/order", order.encode())


def static_busybox(cache: Path, progress: Callable[[str], None]) -> bytes:
    """A static busybox: this machine's, or from its package without installing it."""
    for name in ("/bin/busybox", "/usr/lib/initramfs-tools/bin/busybox"):
        path = Path(name)
        if path.is_file() and is_static(data := read_bytes(path, limit=BUSYBOX_LIMIT)):
            return data
    package = packages.required("busybox-static")

    def make(scratch: Path) -> Made:
        progress(f"fetching {package.name} {package.version}")
        with packages.opened(package, scratch=scratch) as opened:
            for member in ("bin/busybox", "usr/bin/busybox"):
                if member in opened.names:
                    return Made(files={"busybox": opened.read(member)})
        raise EnvironmentLackError(
            f"package {package.name} holds no busybox", remedy="apt-get install busybox-static"
        )

    return obtain(cache, "busybox", key_of(package.sha256), make).read("busybox")


def is_static(program: bytes) -> bool:
    """Whether an ELF64 program names no interpreter (PT_INTERP = 3), so that it runs alone.

    Layout: System V ABI, chapter 5, program header.
    """
    if program[:6] != b"\x7fELF\x02\x01":
        return False
    table = int.from_bytes(program[0x20:0x28], "little")
    size = int.from_bytes(program[0x36:0x38], "little")
    count = int.from_bytes(program[0x38:0x3A], "little")
    kinds = (program[table + n * size :][:4] for n in range(count))
    return all(int.from_bytes(kind, "little") != 3 for kind in kinds)
