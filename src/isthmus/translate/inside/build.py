"""Build the module for one kernel release, from the folder of that kernel's headers.

The sources are those beside this file and the core's own; a build copies both into one folder, so
that nothing is written into the installation.  A module fits exactly one release (its *vermagic*),
so each guest kernel has a build of its own: here, or in the guest by DKMS (``export``).
"""

import shutil
import subprocess
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from isthmus.errors import EnvironmentLackError, InputError

NAME = "isthmus_translate"
BUILD_TIMEOUT_S = 600
_SAID_LINES = 3

# DKMS builds it anew for each kernel that the guest gets (dkms(8)).
_DKMS = f"""PACKAGE_NAME="isthmus-translate"
PACKAGE_VERSION="VERSION"
BUILT_MODULE_NAME[0]="{NAME}"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C ${{kernel_source_dir}} M=${{dkms_tree}}/${{PACKAGE_NAME}}/${{PACKAGE_VERSION}}/build modules"
CLEAN="make -C ${{kernel_source_dir}} M=${{dkms_tree}}/${{PACKAGE_NAME}}/${{PACKAGE_VERSION}}/build clean"
AUTOINSTALL="yes"
"""  # noqa: E501  (a line of that file cannot be broken)


def sources() -> dict[str, bytes]:
    """All files of the module, by their path in its folder."""
    translate = Path(str(resources.files("isthmus.translate")))
    found: dict[str, bytes] = {}
    for folder, place in ((translate / "inside/module", ""), (translate / "core", "core/")):
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".c", ".h", ".inc"} or path.name == "Kbuild":
                found[place + str(path.relative_to(folder))] = path.read_bytes()
    return found


def export(folder: Path, *, version: str) -> None:
    """Write the sources into a new folder, ready for ``dkms add FOLDER``.

    :raises InputError: the folder is there already, or cannot be written.
    """
    _write(folder, {**sources(), "dkms.conf": _DKMS.replace("VERSION", version).encode()})


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written: {error.strerror}", remedy="name a new folder"
        ) from error


def build(headers: Path, folder: Path, files: Mapping[str, bytes], name: str = NAME) -> bytes:
    """Compile a module against ``headers``, in the new ``folder``; returns the ``.ko``.

    :param headers: a kernel's build folder, such as ``/lib/modules/RELEASE/build``.
    :param files: the module's sources by path, see :func:`sources`; ``name`` is what they make.
    :raises InputError: no such headers.
    :raises EnvironmentLackError: make or a compiler is missing, or the build fails.
    """
    if not (headers / "Makefile").is_file():
        raise InputError(
            f"{headers}: holds no kernel headers",
            remedy="install the package linux-headers of that kernel, or name its build folder",
        )
    for program in ("make", "gcc"):
        if shutil.which(program) is None:
            raise EnvironmentLackError(
                f"{program}: no such program", remedy=f"apt-get install {program}"
            )
    _write(folder, files)
    # Type data (BTF) would need pahole, and nobody asks a module for it.
    command = ["make", "-C", str(headers), f"M={folder}", "CC=gcc"]
    command += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False,
            timeout=BUILD_TIMEOUT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLackError(f"make did not end within {BUILD_TIMEOUT_S} s") from error
    if done.returncode != 0:
        wrong = [line for line in done.stderr.splitlines() if "rror" in line] or ["no reason given"]
        raise EnvironmentLackError(
            f"the module cannot be built: {'; '.join(wrong[:_SAID_LINES])[:300]}",
            remedy=f"see `{' '.join(command)}`",
        )
    module = folder / f"{name}.ko"
    # Debug data is nine tenths of it, and no kernel reads it.
    subprocess.run(["objcopy", "--strip-debug", module], check=True, timeout=60)
    return module.read_bytes()
