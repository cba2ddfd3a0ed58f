"""A Xen host under QEMU: Debian's hypervisor, a dom0 in memory, and ``xl``, from packages alone.

QEMU loads Xen by the multiboot protocol (``-kernel``, with dom0's kernel and initramfs as modules
in ``-initrd``), so there is no boot loader and no disk to install to.  dom0 starts what ``xl``
needs (xenstored, xen-init-dom0, xenconsoled).  Then it serves as a lab host, by the agent of
:mod:`isthmus.qualification.kvm` on its network (:mod:`isthmus.qualification.xen.host`), or, where
no token for the agent is on its command line, runs a script of ours that it finds on its first
disk; what the script writes to its second disk is the answer.  Nothing is installed here.

Facts met in the lab: Debian's *cloud* kernel has no CONFIG_XEN_DOM0, its ordinary one has; Xen
under QEMU 7.2 does not switch the machine off, so the end is a line on the console.
"""

import gzip
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu.binary import find_qemu
from isthmus.qualification.kvm.image import AGENT_PORT, build_agent
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.image import static_busybox
from isthmus.qualification.lab.initramfs import Entry, archive, file, folder, link
from isthmus.qualification.lab.kernel import choose_packages
from isthmus.qualification.lab.modules import decompress, depends, load_order
from isthmus.qualification.lab.packages import Archive, Package
from isthmus.qualification.store import Made, Stored, key_of, obtain
from isthmus.values import Value

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "xen_privcmd", "xenfs", "xen_evtchn",
           "xen_gntdev", "xen_gntalloc")  # fmt: skip
"""What dom0 needs beyond what its kernel has built in: disks, network, the toolstack's devices."""

DOM0_MIB = 560
HOST_MIB = 1024
END = "isthmus: the script has ended"
_MODULE = re.compile(r"lib/modules/.*/([A-Za-z0-9_-]+)\.ko(?:\.xz|\.zst)?")
_LIBRARY = re.compile(r"(?:usr/)?lib/(?:x86_64-linux-gnu|xen-[\d.]+/lib/x86_64-linux-gnu)/[^/]+")
_PROGRAM = re.compile(
    r"usr/lib/(xen-[\d.]+)/bin/(?:xl|libxl-save-helper|xen[a-z0-9-]+)|sbin/ldconfig"
)
RECIPE = "3"  # a change in what is taken out of the packages

GUEST_INIT = b"""#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
exec > /dev/hvc0 2>&1
n=0
while :; do n=$((n+1)); echo "beat $n"; /bin/busybox sleep 1; done
"""
"""A guest that says each second that it lives."""

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/lib/{xen}/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
for name in $(cat /modules/order); do insmod /modules/$name.ko; done
mount -t xenfs xenfs /proc/xen
/sbin/ldconfig
xenstored
until [ -S /run/xenstored/socket ]; do sleep 0.2; done
xen-init-dom0
xenconsoled --log=guest --log-dir=/var/log/xen/console
token=
for word in $(cat /proc/cmdline); do
    case $word in
    isthmus.token=*) token=${{word#*=}} ;;
    isthmus.host=*) hostname "${{word#*=}}" ;;
    esac
done
if [ -n "$token" ]; then
    ip link set lo up
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
    exec /bin/agent {port} "$token"
fi
size=$(tr ' ' '\\n' < /proc/cmdline | grep ^isthmus.script= | cut -d= -f2)
head -c "$size" /dev/vda > /tmp/script
sh /tmp/script
sync
echo "{end}"
sleep 1000
"""


class XenHost(Value, frozen=True):
    """What QEMU loads: the hypervisor, dom0's kernel, its initramfs; and Xen's version."""

    xen: Path
    kernel: Path
    initrd: Path
    version: str


def build_host(*, cache: Path, progress: Callable[[str], None] = lambda _: None) -> XenHost:
    """The host's files, from the cache or made of packages.

    :raises EnvironmentLackError: apt's lists have no Xen, or a package cannot be had.
    """
    chosen = _packages()
    agent = build_agent(cache, progress=progress)
    key = key_of(RECIPE, _INIT, GUEST_INIT, agent, *(package.sha256 for package in chosen))

    def make(scratch: Path) -> Made:
        return _made(chosen, agent, cache, scratch, progress)

    stored: Stored = obtain(cache, "xen-hosts", key, make)
    return XenHost(
        xen=stored.folder / "xen",
        kernel=stored.folder / "vmlinuz",
        initrd=stored.folder / "initrd",
        version=stored.manifest.facts["version"],
    )


def run_script(
    host: XenHost, cpu: str, script: str, disk: Path, *, console: Path, timeout_s: float
) -> str:
    """Boot the host with the CPU model ``cpu``, run ``script`` in dom0; what its console said.

    :param disk: dom0's second disk, /dev/vdb, read and written.
    :raises EnvironmentLackError: QEMU ended, or the script did not, within ``timeout_s``.
    """
    text = script.encode()
    lines = console.with_suffix(".script")
    lines.write_bytes(text + bytes(-len(text) % 4096))
    console.unlink(missing_ok=True)
    drives = [
        word
        for path in (lines, disk)
        for word in ("-drive", f"file={path},format=raw,if=virtio,cache=unsafe")
    ]
    command = [
        str(find_qemu().path), "-machine", "pc", "-accel", "tcg", "-cpu", cpu, "-smp", "1",
        "-m", str(HOST_MIB), "-nodefaults", "-no-user-config", "-display", "none",
        "-serial", f"file:{console}", "-kernel", str(host.xen),
        "-append", f"console=com1 com1=115200,8n1 dom0_mem={DOM0_MIB}M guest_loglvl=all",
        "-initrd", f"{host.kernel} console=hvc0 quiet isthmus.script={len(text)},{host.initrd}",
        *drives,
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            _wait(process, console, timeout_s)
        finally:
            process.terminate()
    return _text(console)


def _wait(process: "subprocess.Popen[bytes]", console: Path, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while END not in _text(console):
        if process.poll() is not None:
            raise EnvironmentLackError(f"QEMU ended: {_text(console)[-400:]}")
        if time.monotonic() > end:
            raise EnvironmentLackError(
                f"dom0's script did not end within {timeout_s:g} s: {_text(console)[-400:]}"
            )
        time.sleep(0.2)


def _text(console: Path) -> str:
    return console.read_text(errors="replace") if console.exists() else ""


def _packages() -> tuple[Package, ...]:
    """The hypervisor, the toolstack with its libraries, and a kernel that can be dom0."""
    tools = _newest(r"xen-utils-[\d.]+")
    hypervisor = _newest(r"xen-hypervisor-[\d.]+-amd64")
    # xl ends its threads by pthread_cancel, for which libc loads libgcc when it comes to it.
    roots = (tools.name, "zlib1g", "libc-bin", "libgcc-s1")
    found = packages.with_needs(
        roots, lambda name: name.startswith("lib") or name in {"zlib1g", "xenstore-utils"}
    )
    kernel = choose_packages("linux-image-amd64")
    return (hypervisor, *kernel, *found)


def _newest(pattern: str) -> Package:
    matching = filter(re.compile(pattern).fullmatch, packages.names(pattern.partition("[")[0]))
    names = sorted(matching, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    if not names:
        raise EnvironmentLackError(
            f"apt's lists have no package {pattern}", remedy="run `apt-get update` as root"
        )
    return packages.required(names[-1])


def _made(
    chosen: tuple[Package, ...],
    agent: bytes,
    cache: Path,
    scratch: Path,
    progress: Callable[[str], None],
) -> Made:
    files: dict[str, tuple[bytes, bool]] = {}
    modules: dict[str, bytes] = {}
    xen = vmlinuz = b""
    version = ""
    progress(f"fetching {len(chosen)} packages with Xen, its toolstack and a kernel for dom0")
    for _, opened in packages.each_opened(chosen, scratch=scratch):
        for name in opened.names:
            if _LIBRARY.fullmatch(name) or _PROGRAM.fullmatch(name):
                files[name] = (opened.read(name), opened.executable(name))
            elif re.fullmatch(r"boot/xen-[\d.]+-amd64\.gz", name):
                xen = gzip.decompress(opened.read(name))
                version = name.split("-")[1]
            elif name.startswith("boot/vmlinuz-"):
                vmlinuz = opened.read(name)
        modules |= _modules(opened)
    if not xen or not vmlinuz:
        raise EnvironmentLackError("the packages hold no hypervisor or no kernel")
    busybox = static_busybox(cache, progress)
    entries = _entries(files, modules, vmlinuz, busybox, agent)
    return Made(
        files={"xen": xen, "vmlinuz": vmlinuz, "initrd": archive(entries)},
        facts={"version": version},
    )


def _modules(opened: Archive) -> dict[str, bytes]:
    """The wanted modules of a kernel package, and those that they need."""
    paths = {
        match[1].replace("-", "_"): name
        for name in opened.names
        if (match := _MODULE.fullmatch(name))
    }
    found: dict[str, bytes] = {}
    waiting = [name for name in MODULES if name in paths]
    while waiting:
        name = waiting.pop()
        if name not in found and name in paths:
            found[name] = decompress(paths[name], opened.read(paths[name]))
            waiting += depends(found[name])
    return found


def _entries(
    files: dict[str, tuple[bytes, bool]],
    modules: dict[str, bytes],
    vmlinuz: bytes,
    busybox: bytes,
    agent: bytes,
) -> Iterator[Entry]:
    xen = next(match[1] for name in files if (match := _PROGRAM.fullmatch(name)) and match[1])
    order = load_order(modules, MODULES)
    libraries = sorted({str(Path(name).parent) for name in files if _LIBRARY.fullmatch(name)})
    content = {
        **files,
        "bin/busybox": (busybox, True),
        "bin/agent": (agent, True),
        "init": (_INIT.format(xen=xen, end=END, port=AGENT_PORT).encode(), True),
        "modules/order": ("\n".join(order).encode(), False),
        **{f"modules/{name}.ko": (modules[name], False) for name in order},
        "etc/ld.so.conf": ("".join(f"/{path}\n" for path in libraries).encode(), False),
        "etc/xen/xl.conf": (b"", False),
        "guest/vmlinuz": (vmlinuz, False),
        "guest/initrd": (_guest(busybox), False),
    }
    folders = {
        "dev", "lib64", "proc", "run/lock", "run/xen", "run/xenstored", "sys", "tmp",
        "var/cache/ldconfig", "var/lib/xen", "var/lib/xenstored", "var/log/xen/console",
    }  # fmt: skip
    for name in sorted(_above(content) | folders | {p for f in folders for p in _parents(f)}):
        yield folder(name)
    yield link("var/run", "/run")
    yield link("var/lock", "/run/lock")
    loader = next(name for name in files if name.endswith("/ld-linux-x86-64.so.2"))
    yield link("lib64/ld-linux-x86-64.so.2", f"/{loader}")
    for name, (data, executable) in content.items():
        yield file(name, data, executable=executable)


def _guest(busybox: bytes) -> bytes:
    return archive(
        [
            folder("bin"),
            folder("dev"),
            file("bin/busybox", busybox, executable=True),
            file("init", GUEST_INIT, executable=True),
        ]
    )


def _above(names: "dict[str, tuple[bytes, bool]]") -> set[str]:
    return {parent for name in names for parent in _parents(name)}


def _parents(name: str) -> list[str]:
    return [str(parent) for parent in Path(name).parents if str(parent) != "."]
