"""The image of a lab host: a kernel with KVM, and an initramfs with QEMU and our agent.

Everything comes from packages that are opened, not installed; the agent is compiled here.  Files
that guests boot from are put in beforehand, in ``/store`` by their SHA-256, where
:mod:`isthmus.qualification.kvm.remote` looks before it sends any.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path

from isthmus.qualification.lab import programs
from isthmus.qualification.lab.image import static_busybox
from isthmus.qualification.lab.initramfs import Entry, archive, file, folder, link
from isthmus.qualification.lab.kernel import GuestKernel, fetch_kernel
from isthmus.qualification.payload.build import compiled, compiler_version
from isthmus.qualification.store import Made, Stored, key_of, obtain
from isthmus.values import Value, read_bytes

AGENT_PORT = 7000
MODULES = ("virtio_pci", "virtio_net", "e1000", "kvm_amd", "kvm_intel")
"""The two networks that the emulators have, and KVM for both makers: one of them loads."""

KERNELS: Mapping[str, str] = {"qemu": "linux-image-cloud-amd64", "bochs": "linux-image-amd64"}
"""The kernel for each emulator: only the larger one drives the network card that Bochs has."""

PACKAGES = ("qemu-system-x86", "qemu-system-data", "seabios")
QEMU = "usr/bin/qemu-system-x86_64"
FIRMWARE = (
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
)

APPLETS = (
    "cat", "cp", "cut", "date", "dmesg", "echo", "free", "grep", "hexdump", "hostname", "insmod",
    "ip", "kill", "ls", "lsmod", "mkdir", "mount", "mv", "poweroff", "ps", "rm", "sed", "sh",
    "sleep", "tail", "top", "uname", "wc",
)  # fmt: skip

# The address is the one that QEMU's and Bochs's user network expect (slirp's first guest).
# A module of the other maker, or of the network that is not there, refuses to load: no error.
INIT = b"""#!/bin/sh
# Mount what programs need, load the modules, bring the network up, become the agent's keeper.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
while read -r module; do
    insmod "/lib/modules/$module.ko" 2>/dev/null
done < /lib/modules/order
token=
for word in $(cat /proc/cmdline); do
    case $word in
    isthmus.token=*) token=${word#*=} ;;
    isthmus.host=*) hostname "${word#*=}" ;;
    esac
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
/bin/agent 7000 "$token"
echo "isthmus: the agent has ended"
sleep 1
poweroff -f
"""


class HostImage(Value, frozen=True):
    """The two files a lab host boots from, and what is in them."""

    kernel: Path
    initrd: Path
    release: str
    qemu: str
    key: str


def build_host_image(
    emulator: str,
    *,
    cache: Path,
    guests: Collection[Path] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> HostImage:
    """Build the image for an emulator, or take it from ``cache``; safe with several builders.

    :param emulator: ``qemu`` or ``bochs``.
    :param guests: files that guests will boot from.
    :raises EnvironmentLackError: a package, a compiler or the disk's space is missing.
    """
    kernel = fetch_kernel(KERNELS[emulator], cache=cache, progress=progress, wanted=MODULES)
    hypervisor = _hypervisor(cache, progress)
    busybox = static_busybox(cache, progress)
    agent = build_agent(cache, progress=progress)
    vmlinuz = read_bytes(kernel.vmlinuz, limit=256 << 20)
    stored = {name: read_bytes(path, limit=512 << 20) for name, path in _by_content(guests)}
    key = key_of(
        vmlinuz, *(part for pair in kernel.modules for part in pair),
        hypervisor.manifest.facts["key"], busybox, agent, INIT, *APPLETS, *sorted(stored),
    )  # fmt: skip

    def make(_scratch: Path) -> Made:
        progress(f"building the image of a lab host with Linux {kernel.release}")
        entries = _entries(kernel, hypervisor, busybox, agent, stored)
        return Made(files={"vmlinuz": vmlinuz, "initrd": archive(entries)})

    made = obtain(cache, "hosts", key, make)
    return HostImage(
        kernel=made.folder / "vmlinuz",
        initrd=made.folder / "initrd",
        release=kernel.release,
        qemu=hypervisor.manifest.facts["version"],
        key=key,
    )


def stored_at(digest: str) -> str:
    """Where a lab host keeps a file of that SHA-256."""
    return f"/store/{digest}"


def build_agent(cache: Path, *, progress: Callable[[str], None] = lambda _: None) -> bytes:
    """The agent as one static program.

    :raises EnvironmentLackError: there is no compiler, or no static C library.
    """
    source = resources.files("isthmus.qualification.kvm").joinpath("agent.c").read_bytes()
    key = key_of(compiler_version("gcc"), source)

    def make(scratch: Path) -> Made:
        progress("compiling the agent of the lab hosts")
        return Made(files={"agent": compiled({"agent.c": source}, scratch, "gcc")})

    return obtain(cache, "agents", key, make).read("agent")


def _hypervisor(cache: Path, progress: Callable[[str], None]) -> Stored:
    """QEMU, its firmware and its libraries; in the cache a path's slashes are written ``+``."""
    chosen = programs.needed_packages(PACKAGES)
    version = next(package.version for package in chosen if package.name == PACKAGES[0])
    key = key_of(*(package.sha256 for package in chosen), QEMU, *FIRMWARE)

    def make(scratch: Path) -> Made:
        progress(f"fetching {len(chosen)} packages with QEMU {version} and its libraries")
        found = programs.files(chosen, (QEMU,), FIRMWARE, scratch=scratch)
        return Made(
            files={name.replace("/", "+"): content for name, content in found.items()},
            facts={"version": version, "key": key},
        )

    return obtain(cache, "hypervisors", key, make)


def _by_content(paths: Collection[Path]) -> Iterator[tuple[str, Path]]:
    for path in paths:
        with path.open("rb") as stream:
            yield hashlib.file_digest(stream, "sha256").hexdigest(), path


def _entries(
    kernel: GuestKernel,
    hypervisor: Stored,
    busybox: bytes,
    agent: bytes,
    stored: Mapping[str, bytes],
) -> Iterator[Entry]:
    own = {name.replace("+", "/"): name for name in sorted(hypervisor.manifest.files)}
    places = {str(above) for name in own for above in Path(name).parents} - {"."}
    for path in sorted({*places, "bin", "dev", "lib/modules", "proc", "store", "sys", "tmp"}):
        yield folder(path)
    yield file("init", INIT, executable=True)
    yield file("bin/busybox", busybox, executable=True)
    for applet in APPLETS:
        yield link(f"bin/{applet}", "busybox")
    yield file("bin/agent", agent, executable=True)
    for path, name in own.items():
        yield file(path, hypervisor.read(name), executable=not path.startswith("usr/share/"))
    for name, content in kernel.modules:
        yield file(f"lib/modules/{name}.ko", content)
    yield file("lib/modules/order", "".join(f"{name}\n" for name, _ in kernel.modules).encode())
    for digest, content in stored.items():
        yield file(stored_at(digest).lstrip("/"), content)
