"""A distribution's kernel for lab guests: fetched as a package, unpacked without root.

Debian: the cloud kernel (small, quick to boot) of the default series or of a named one.  Ubuntu
(not yet run there): the ``virtual`` flavour, whose modules are in a package of their own.
"""

import contextlib
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.qualification.lab.modules import WANTED, decompress, load_order
from isthmus.values import Value, read_bytes

VMLINUZ_LIMIT = 64 << 20
_META = ("linux-image-cloud-amd64", "linux-image-virtual")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.:~-]{1,120}")
_MODULE = re.compile(r"\.?/?(?:usr/)?lib/modules/([^/]+)/.*/([^/]+)\.ko(?:\.xz|\.zst)?")


class GuestKernel(Value, frozen=True):
    """A kernel with the modules a guest needs, in the order in which they load."""

    release: str
    vmlinuz: bytes
    modules: tuple[tuple[str, bytes], ...]


def fetch_kernel(selector: str | None = None, *, progress: Callable[[str], None]) -> GuestKernel:
    """Fetch a kernel.

    :param selector: None for the distribution's default; a series such as ``6.12``; a package; or
        the path of a vmlinuz (its modules are then looked for under ``/lib/modules/RELEASE``).
    :raises EnvironmentLackError: apt or dpkg is missing or does not know the package.
    :raises InputError: the selector names nothing.
    """
    if selector is not None and "/" in selector:
        return _own(Path(selector))
    package = _package(selector)
    progress(f"fetching {package}")
    with tempfile.TemporaryDirectory(prefix="isthmus-kernel-") as folder:
        files = [_download(package, Path(folder))]
        if package.startswith("linux-image-") and "generic" in package:
            files.append(_download(package.replace("image", "modules", 1), Path(folder)))
        return _unpacked(files)


def _package(selector: str | None) -> str:
    if selector is not None and _PACKAGE.fullmatch(selector) and selector.startswith("linux-"):
        return selector
    if selector is None:
        for meta in _META:
            for line in _apt_cache("depends", meta).splitlines():
                word = line.strip().removeprefix("Depends: ")
                if re.fullmatch(r"linux-image-\d[\w.+-]*", word):
                    return word
        raise EnvironmentLackError(
            "apt knows no kernel package",
            remedy="apt-get update (or name one with --kernel: a package or a vmlinuz)",
        )
    if not re.fullmatch(r"\d+\.\d+", selector):
        raise InputError(
            f"{selector}: not a kernel", remedy="give a series (6.1), a package or a path"
        )
    names = _apt_cache("search", "--names-only", rf"^linux-image-{re.escape(selector)}\.").split(
        "\n"
    )
    fitting = [
        name.split()[0]
        for name in names
        if re.match(r"linux-image-\d\S*-(cloud-amd64|generic) ", name + " ")
    ]
    if not fitting:
        raise InputError(
            f"{selector}: apt knows no cloud kernel of that series",
            remedy="apt-cache search linux-image lists what there is",
        )
    return max(fitting, key=_version_key)


def _version_key(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def _apt_cache(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["apt-cache", *arguments], capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError as error:
        raise EnvironmentLackError(
            "apt-cache: no such program", remedy="name a kernel by the path of its vmlinuz"
        ) from error
    return done.stdout


def _download(package: str, folder: Path) -> Path:
    done = subprocess.run(
        # The sandbox user of apt cannot write into a private folder, so root says to stay root.
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-q", package],
        cwd=folder, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    found = sorted(folder.glob(f"{package}_*.deb"))
    if done.returncode != 0 or not found:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EnvironmentLackError(
            f"{package}: cannot be fetched: {said}", remedy="apt-get update, then try again"
        )
    return found[0]


def _unpacked(packages: list[Path]) -> GuestKernel:
    vmlinuz = b""
    release = ""
    modules: dict[str, bytes] = {}
    packed: dict[str, tuple[str, bytes]] = {}
    for package in packages:
        with _members(package) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name = member.name.removeprefix("./")
                match = _MODULE.fullmatch(member.name)
                if name.startswith("boot/vmlinuz-") and member.size <= VMLINUZ_LIMIT:
                    vmlinuz = _content(archive, member)
                    release = name.removeprefix("boot/vmlinuz-")
                elif match and "/kernel/drivers/" in member.name and member.size <= VMLINUZ_LIMIT:
                    plain_name = match[2].replace("-", "_")
                    if plain_name.startswith(("virtio", "failover", "net_failover")):
                        packed[plain_name] = (name, _content(archive, member))
    if not vmlinuz:
        raise InputError(f"{packages[0].name}: holds no kernel", remedy="name another package")
    for plain_name, (name, data) in packed.items():
        modules[plain_name] = decompress(name, data)
    return GuestKernel(release=release, vmlinuz=vmlinuz, modules=_ordered(modules))


def _own(path: Path) -> GuestKernel:
    vmlinuz = read_bytes(path, limit=VMLINUZ_LIMIT)
    # The release stands in the image itself: Linux Documentation/arch/x86/boot.rst, kernel_version.
    if vmlinuz[0x202:0x206] != b"HdrS":
        raise InputError(f"{path}: not a Linux bzImage", remedy="name a vmlinuz")
    offset = int.from_bytes(vmlinuz[0x20E:0x210], "little") + 0x200
    release = vmlinuz[offset : vmlinuz.find(b"\0", offset)].split(b" ")[0].decode(errors="replace")
    modules = {}
    root = Path("/lib/modules") / release / "kernel/drivers"
    for file in sorted(root.rglob("virtio*.ko*")) if root.is_dir() else ():
        name = file.name.split(".")[0].replace("-", "_")
        modules[name] = decompress(file.name, read_bytes(file))
    return GuestKernel(release=release, vmlinuz=vmlinuz, modules=_ordered(modules))


def _ordered(modules: dict[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, modules[name]) for name in load_order(modules, WANTED))


@contextlib.contextmanager
def _members(package: Path) -> Iterator[tarfile.TarFile]:
    """The files inside a .deb as a stream; nothing is written to disk."""
    try:
        child = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise EnvironmentLackError(
            "dpkg-deb: no such program", remedy="name a kernel by the path of its vmlinuz"
        ) from error
    assert child.stdout is not None
    try:
        with tarfile.open(fileobj=child.stdout, mode="r|") as archive:
            yield archive
    except tarfile.TarError as error:
        raise InputError(f"{package.name}: damaged: {error}", remedy="fetch it again") from error
    finally:
        child.stdout.close()
        child.kill()
        child.wait()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream: IO[bytes] | None = archive.extractfile(member)
    return stream.read() if stream is not None else b""
