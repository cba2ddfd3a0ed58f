"""The hypervisor, rebuilt from Debian's own source package with shadow paging.

Debian builds Xen with ``# CONFIG_SHADOW_PAGING is not set``.  A PV guest is moved live by the
log-dirty mode of shadow paging and nothing else, so ``xl migrate`` of one fails there ("Failed to
enable logdirty: 95,22,0", seen in the lab); ``xl save`` and ``xl restore`` work.  Only the
hypervisor is rebuilt, with the package's own configuration but for that word; the toolstack stays
Debian's, which speaks to every hypervisor of its release (XEN_DOMCTL_INTERFACE_VERSION).
"""

import gzip
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.qualification.lab import packages, programs
from isthmus.qualification.lab.packages import Lists
from isthmus.qualification.lab.sources import Source, source_lists, unpack, versions
from isthmus.qualification.payload.build import compiler_version
from isthmus.qualification.store import Made, Stored, key_of, obtain

WANTED = "CONFIG_SHADOW_PAGING=y"
RECIPE = "1"  # a change in how it is built
BUILD_TIMEOUT_S = 3600
TOOLS = ("bison", "flex", "m4", "patch")
"""What the build needs and few machines have: opened, not installed; make too, if it is missing."""

_LOADER = "lib64/ld-linux-x86-64.so.2"
_LIBRARIES = "lib/x86_64-linux-gnu"


def rebuilt(
    release: str, *, cache: Path, progress: Callable[[str], None] = lambda _: None
) -> Stored:
    """The rebuilt hypervisor, ``xen`` in an entry of the cache whose facts name its ``version``.

    The newest source of that release which can be had is taken.  The first build takes some two
    minutes on two cores.

    :param release: of the toolstack, such as ``4.17``.
    :raises EnvironmentLackError: no source can be had, or it does not build here.
    """
    lists = source_lists(cache / "lists" / "sources")
    if lists is None:
        raise EnvironmentLackError(
            "apt has no source lists of this distribution to give", remedy="check the network"
        )
    failure: EnvironmentLackError | None = None
    for source in versions("xen", lists):
        if not source.version.startswith(f"{release}."):
            continue
        try:
            return _built(source, lists, cache, progress)
        except EnvironmentLackError as error:
            # An archive may have dropped a version that its lists still name.
            progress(f"Xen {source.version} cannot be rebuilt ({error.message[:60]} …)")
            failure = failure or error
    raise failure or EnvironmentLackError(f"apt's source lists have no Xen {release}")


def _built(source: Source, lists: Lists, cache: Path, progress: Callable[[str], None]) -> Stored:
    key = key_of(RECIPE, WANTED, compiler_version("gcc"), *source.sums)

    def make(scratch: Path) -> Made:
        tools = _tools(scratch)
        tree = unpack(source, scratch, lists, tools["patch"])
        progress(f"building Xen {source.version} with shadow paging (two minutes or more)")
        content = _make(tree / "xen", tree / "debian" / "xen-kconfig", tools, scratch)
        return Made(files={"xen": content}, facts={"version": source.version})

    return obtain(cache, "xen-hypervisors", key, make)


def _tools(scratch: Path) -> dict[str, tuple[str, ...]]:
    """The build's tools by name, each as a command that runs it with its own libraries."""
    folder = scratch / "tools"
    wanted = TOOLS if shutil.which("make") else (*TOOLS, "make")
    chosen = programs.needed_packages(wanted)
    paths = [f"usr/bin/{name}" for name in wanted]
    shared = []
    for package, archive in packages.each_opened(chosen, scratch=scratch):
        if package.name in {"bison", "bison-data"}:
            shared += [
                (name, archive.read(name))
                for name in archive.names
                if name.startswith("usr/share/bison/")
            ]
    found = programs.files(chosen, paths, (), scratch=scratch)
    for name, content in (*found.items(), *shared):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o755)
    (folder / "bin").mkdir()
    for name in wanted:
        words = [str(folder / _LOADER), "--library-path", str(folder / _LIBRARIES),
                 str(folder / "usr/bin" / name)]  # fmt: skip
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return {name: (str(folder / "bin" / name),) for name in wanted}


def _make(xen: Path, packaged: Path, tools: dict[str, tuple[str, ...]], scratch: Path) -> bytes:
    folder = scratch / "tools"
    lines = packaged.read_text(encoding="utf-8").splitlines() if packaged.exists() else []
    kept = [line for line in lines if "CONFIG_SHADOW_PAGING" not in line]
    (xen / ".config").write_text("\n".join([*kept, WANTED, ""]), encoding="utf-8")
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "LC_ALL": "C",
        "M4": tools["m4"][0],
        "BISON_PKGDATADIR": str(folder / "usr/share/bison"),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
    }
    log = scratch / "build.log"
    jobs = f"-j{os.cpu_count() or 1}"
    with log.open("wb") as out:
        for words in (["olddefconfig"], [jobs, "build"]):
            command = ["make", "-C", str(xen), f"PYTHON={sys.executable}", *words]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False,
                    env=environment, timeout=BUILD_TIMEOUT_S,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise EnvironmentLackError(f"Xen is not built within {error.timeout} s") from error
            if done.returncode != 0:
                tail = log.read_text(encoding="utf-8", errors="replace").strip()[-400:]
                raise EnvironmentLackError(f"Xen does not build here: {tail}")
    if WANTED not in (xen / ".config").read_text(encoding="utf-8").splitlines():
        raise EnvironmentLackError(f"this Xen cannot be built with {WANTED}")
    return gzip.decompress((xen / "xen.gz").read_bytes())
