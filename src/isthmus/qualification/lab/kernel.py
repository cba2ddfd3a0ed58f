"""Kernels for lab guests: which packages a version names, and what a guest needs out of them.

Debian: the cloud kernel (small, quick to boot) of the default series or of a named one.  Ubuntu
(written from its package lists, not yet run there): the ``virtual`` flavour, whose modules are in
a package of their own.  A series that this machine's lists do not have comes from the Debian
release that has it.  Or a kernel of the user's own.
"""

import re
from collections.abc import Callable
from pathlib import Path

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.modules import (
    MODULE_LIMIT,
    WANTED,
    decompress,
    depends,
    load_order,
)
from isthmus.qualification.lab.packages import HERE, Lists, Package
from isthmus.qualification.store import Made, Stored, key_of, obtain
from isthmus.values import Value, read_bytes

KERNEL_LIMIT = 256 << 20
MODULE_FILES_LIMIT = 20_000
RECIPE = "1"  # a change in what is taken out of a package

_DEFAULTS: tuple[str, ...] = (
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-generic",
)
_SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
"""Debian's release for each series (Debian wiki, DebianKernel)."""
_FLAVOURS = ("-cloud-amd64", "-generic")
_SERIES = re.compile(r"\d{1,2}(\.\d{1,3}){1,2}([.+~-][A-Za-z0-9.+~-]{1,40})?")
_SERIES_OF = re.compile(r"(\d{1,2}\.\d{1,3})(?![0-9])")
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~_-]{0,127}")
_MODULE_FILE = re.compile(r"([A-Za-z0-9_-]{1,64})\.ko(?:\.xz|\.zst)?")


class GuestKernel(Value, frozen=True):
    """A kernel with the modules a guest needs, in the order in which they load."""

    release: str
    vmlinuz: Path
    modules: tuple[tuple[str, bytes], ...]


def fetch_kernel(
    selector: str | None = None,
    *,
    cache: Path,
    progress: Callable[[str], None],
    wanted: tuple[str, ...] = WANTED,
) -> GuestKernel:
    """A kernel, from the cache or freshly fetched.

    :param selector: None for the distribution's default; a series such as ``6.12``; a package; or
        the path of a vmlinuz with its modules in ``modules/`` or ``lib/modules/RELEASE`` beside
        it, or in ``/lib/modules/RELEASE`` (a kernel with virtio built in needs none).
    :param wanted: the modules to take, with those that they need.
    :raises EnvironmentLackError: apt or dpkg is missing or does not know the package.
    :raises InputError: the selector names nothing usable.
    """
    if selector is not None and "/" in selector:
        path = Path(selector)
        image = read_bytes(path, limit=KERNEL_LIMIT)
        return _own(path, kernel_release(image, where=str(path)), wanted)
    lists = lists_with(selector or "", cache)
    chosen = choose_packages(selector, lists)
    more = () if wanted == WANTED else wanted
    key = key_of(RECIPE, *(package.sha256 for package in chosen), *more)

    def make(scratch: Path) -> Made:
        return _from_packages(chosen, lists, scratch, progress, wanted)

    return _restored(obtain(cache, "kernels", key, make))


def lists_with(kernel: str, cache: Path) -> Lists:
    """The package lists to look for a kernel in: this machine's, or another Debian release's.

    :param kernel: a series, a release (``5.10.0-32-cloud-amd64``) or a package of an image.
    :param cache: where the lists of another release are kept.
    """
    match = _SERIES_OF.match(kernel.removeprefix("linux-image-"))
    suite = _SUITES.get(match[1]) if match else None
    if match is None or suite is None or packages.names(f"linux-image-{match[1]}"):
        return HERE
    return packages.of_suite(suite, cache) or HERE


def choose_packages(selector: str | None, lists: Lists = HERE) -> tuple[Package, ...]:
    """The packages that hold a kernel: its image and, on Ubuntu, its modules.

    :raises EnvironmentLackError: apt's lists have no such kernel.
    :raises InputError: neither a series nor a package.
    """
    if selector is None:
        candidates = _DEFAULTS
    elif selector.startswith("linux-image-"):
        candidates = (selector,)
    else:
        candidates = _of_series(selector, lists)
    for name in candidates:
        package = packages.find(name, lists)
        if package is not None and (found := _concrete(package, lists)):
            if selector and _SERIES.fullmatch(selector) and selector not in found[0].name:
                continue  # the default metapackage, but of another series
            return found
    raise EnvironmentLackError(
        f"apt's lists have no kernel package for {selector or 'a guest'}",
        remedy="run `apt-get update` as root, or name a package or the path of an own vmlinuz",
    )


def kernel_release(image: bytes, *, where: str) -> str:
    """The release in a bzImage's setup header.

    ``kernel_version`` at 0x20E is the offset, less 0x200, of a text that begins with the release
    (Linux: Documentation/arch/x86/boot.rst).

    :raises InputError: not a bzImage.
    """
    if image[0x202:0x206] != b"HdrS":
        raise InputError(f"{where}: not an x86 Linux kernel (bzImage)", remedy="name a vmlinuz")
    offset = int.from_bytes(image[0x20E:0x210], "little") + 0x200
    text = image[offset : offset + 256].split(b"\0")[0].split(b" ")[0]
    release = text.decode("ascii", errors="replace")
    if not _RELEASE.fullmatch(release):
        raise InputError(f"{where}: its header names no kernel release", remedy="name a vmlinuz")
    return release


def _of_series(series: str, lists: Lists) -> tuple[str, ...]:
    """Package names that may hold a series, the likeliest first."""
    if not _SERIES.fullmatch(series):
        raise InputError(
            f"{series}: not a kernel",
            remedy="name a series such as 6.12, a linux-image package, or the path of a vmlinuz",
        )
    prefix = f"linux-image-{series}"
    metas = tuple(prefix + flavour for flavour in _FLAVOURS)
    concrete = [
        name
        for name in packages.names(prefix, lists)
        if name.endswith(_FLAVOURS) and name not in metas and name[len(prefix)] in ".-+~"
    ]
    # The default metapackage first: when it is of this series it names the newest version, while
    # apt-cache may still know versions that the archive no longer has.
    newest = sorted(concrete, key=_numbers, reverse=True)
    return (*_DEFAULTS[:1], *metas, *newest)


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def _concrete(package: Package, lists: Lists) -> tuple[Package, ...]:
    """Follow a metapackage to its kernel, and add Ubuntu's package of modules."""
    for _ in range(4):
        below = next((name for name in package.depends if name.startswith("linux-image-")), None)
        if below is None:
            break
        package = packages.required(below, lists)
    modules = next((name for name in package.depends if name.startswith("linux-modules-")), None)
    return (package,) if modules is None else (package, packages.required(modules, lists))


def _from_packages(
    chosen: tuple[Package, ...],
    lists: Lists,
    scratch: Path,
    progress: Callable[[str], None],
    wanted: tuple[str, ...],
) -> Made:
    image = b""
    found: dict[str, tuple[str, bytes]] = {}
    for package in chosen:
        progress(f"fetching {package.name} {package.version}")
        with packages.opened(package, scratch=scratch, lists=lists) as archive:
            paths = {_module_name(name): name for name in archive.names}

            def read(name: str, paths: dict[str, str] = paths) -> bytes | None:
                path = paths.get(name)
                return decompress(path, archive.read(path)) if path else None

            for name, content in _closure(read, wanted).items():
                found[name] = (name, content)
            for name in archive.names:
                if name.startswith("boot/vmlinuz-"):
                    image = archive.read(name)
    if not image:
        raise InputError(
            f"{chosen[0].name}: holds no boot/vmlinuz", remedy="name a linux-image package"
        )
    release = kernel_release(image, where=chosen[0].name)
    modules = dict(found.values())
    order = load_order(modules, wanted)
    files = {"vmlinuz": image} | {f"{name}.ko": modules[name] for name in order}
    return Made(files=files, facts={"release": release, "modules": " ".join(order)})


def _restored(stored: Stored) -> GuestKernel:
    facts = stored.manifest.facts
    return GuestKernel(
        release=facts["release"],
        vmlinuz=stored.folder / "vmlinuz",
        modules=tuple((name, stored.read(f"{name}.ko")) for name in facts["modules"].split()),
    )


def _own(path: Path, release: str, wanted: tuple[str, ...]) -> GuestKernel:
    folders = (
        path.parent / "modules",
        path.parent / "lib/modules" / release,
        path.parent.parent / "lib/modules" / release,
        Path("/lib/modules") / release,
    )
    paths: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for count, file in enumerate(folder.rglob("*.ko*")):
                if count >= MODULE_FILES_LIMIT:
                    raise InputError(f"{folder}: more than {MODULE_FILES_LIMIT} modules")
                paths[_module_name(file.name)] = file
            break

    def read(name: str) -> bytes | None:
        file = paths.get(name)
        return decompress(str(file), read_bytes(file, limit=MODULE_LIMIT)) if file else None

    modules = _closure(read, wanted)
    return GuestKernel(
        release=release,
        vmlinuz=path,
        modules=tuple((name, modules[name]) for name in load_order(modules, wanted)),
    )


def _closure(read: Callable[[str], bytes | None], wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted modules and, step by step, those that they name."""
    found: dict[str, bytes] = {}
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        content = None if name in found else read(name)
        if content is not None:
            found[name] = content
            waiting += depends(content)
    return found


def _module_name(path: str) -> str:
    """The module's name for a file's path, empty for other files; ``-`` and ``_`` are one."""
    match = _MODULE_FILE.fullmatch(path.rsplit("/", 1)[-1])
    return match[1].replace("-", "_") if match else ""
