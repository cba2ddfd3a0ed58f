"""Kernel modules for lab guests: built against a guest kernel's header packages, not installed.

Debian splits the headers of one kernel over three packages that point at each other by symbolic
links and by a path below /usr/src: the flavour's own, what all flavours have in common, and the
programs of the build (``linux-kbuild``).  They are laid side by side in a scratch folder, with
links of ours.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.kernel import lists_with
from isthmus.qualification.lab.packages import HERE, Lists, Package
from isthmus.qualification.store import Made, key_of, obtain
from isthmus.translate.inside import build

_COMMON = re.compile(r"linux-headers-.*-common")


def inside_module(
    release: str, *, cache: Path, progress: Callable[[str], None] = lambda _: None
) -> bytes:
    """The translator's module for the kernel ``release``, built or from ``cache``.

    :raises EnvironmentLackError: no such header packages, or no compiler.
    """
    return kernel_module(release, build.sources(), build.NAME, cache=cache, progress=progress)


def kernel_module(
    release: str,
    sources: Mapping[str, bytes],
    name: str,
    *,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> bytes:
    """Any module: its ``sources`` by path, with a Kbuild file among them, make ``name``.

    :raises EnvironmentLackError: no such header packages, or no compiler.
    """
    lists = lists_with(release, cache)
    chosen = header_packages(release, lists)
    parts = [part for path, data in sorted(sources.items()) for part in (path, data)]
    key = key_of(*(package.sha256 for package in chosen), name, *parts)

    def make(scratch: Path) -> Made:
        progress(f"building the module {name} for Linux {release}")
        headers = _laid_out(chosen, lists, scratch, release)
        return Made(
            files={f"{name}.ko": build.build(headers, scratch / "module", sources, name)},
            facts={"release": release},
        )

    return obtain(cache, "modules", key, make).read(f"{name}.ko")


def header_packages(release: str, lists: Lists = HERE) -> tuple[Package, ...]:
    """The flavour's headers, the common ones, the build's programs.

    :raises EnvironmentLackError: apt's lists do not have them.
    """
    flavour = packages.required(f"linux-headers-{release}", lists)
    below = [
        packages.required(name, lists)
        for name in flavour.depends
        if _COMMON.fullmatch(name) or name.startswith("linux-kbuild-")
    ]
    if len(below) != 2:
        raise EnvironmentLackError(
            f"{flavour.name}: its common headers and build programs are not named as Debian does",
            remedy="name a Debian kernel, or build the module from that kernel's own headers",
        )
    return (flavour, *below)


def _laid_out(chosen: tuple[Package, ...], lists: Lists, scratch: Path, release: str) -> Path:
    """The packages' files below ``scratch``; returns the flavour's folder."""
    root = scratch / "root"
    for package in chosen:
        with packages.opened(package, scratch=scratch, lists=lists) as archive:
            for name in archive.names:
                if not name.startswith(("usr/src/", "usr/lib/linux-kbuild")):
                    continue
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
                if archive.executable(name):
                    path.chmod(0o755)
    headers = root / "usr/src" / f"linux-headers-{release}"
    common = next(path for path in (root / "usr/src").iterdir() if _COMMON.fullmatch(path.name))
    kbuild = next((root / "usr/lib").glob("linux-kbuild-*"))
    for folder in (headers, common):
        for part in ("scripts", "tools"):
            if not (folder / part).exists():
                (folder / part).symlink_to(kbuild / part)
    (headers / "Makefile").write_text(f"include {common}/Makefile\n", encoding="utf-8")
    return headers
