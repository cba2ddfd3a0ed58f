"""Bochs, the emulator that has Intel's VMX: its program, the CD it boots from, its settings.

The newest Bochs that the machine's package source has is taken, from another suite of the same
distribution if need be: 3.0 is two to three times as fast as Debian 12's 2.7.  It is opened, not
installed, and runs with the C library of its own suite.
"""

import re
import subprocess
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.qualification.kvm.image import HostImage
from isthmus.qualification.lab import packages, programs
from isthmus.qualification.lab.packages import HERE, Lists
from isthmus.qualification.payload.build import SHARED, compiled, compiler_version
from isthmus.qualification.store import Made, Stored, key_of, obtain
from isthmus.values import Value, read_bytes

SUITES = ("trixie",)
"""Suites of Debian that have a newer Bochs than Debian 12, the newest first."""

LOADER = "ld-linux-x86-64.so.2"
_PLUGIN = re.compile(r"usr/lib/x86_64-linux-gnu/bochs/plugins/(libbx_\w+\.so)\.0\.0\.0")
_BOCHS = "usr/bin/bochs-bin"
_BIOS = "usr/share/bochs/BIOS-bochs-latest"
_VIDEO = "usr/share/vgabios/vgabios.bin"
_XORRISO = "usr/bin/xorriso"
_BOOT = ("usr/lib/ISOLINUX/isolinux.bin", "usr/lib/syslinux/modules/bios/ldlinux.c32")
_LOOPBACK = "loopback.so"
_INSTRUCTIONS_PER_S = 50_000_000
"""What Bochs takes for one second of the emulated clock; about what a core of today emulates."""


class Bochs(Value, frozen=True):
    """An opened Bochs: the folder of all its files, and its version."""

    folder: Path
    version: str

    def command(self, settings: Path, orders: Path) -> list[str]:
        """The command line for a file of settings and one of the debugger's orders."""
        loader, *words = _loaded(self.folder, "bochs-bin")
        return [
            loader, "--preload", str(self.folder / _LOOPBACK), *words,
            "-q", "-f", str(settings), "-rc", str(orders),
        ]  # fmt: skip

    @property
    def environment(self) -> Mapping[str, str]:
        """What it needs in its environment to find its plugins."""
        return {"LTDL_LIBRARY_PATH": str(self.folder)}


def find_bochs(cache: Path, progress: Callable[[str], None] = lambda _: None) -> Bochs:
    """Open the newest Bochs, or take it from ``cache``.

    :raises EnvironmentLackError: no suite has a Bochs, it cannot be downloaded, or there is no
        compiler.
    """
    lists = HERE
    for suite in SUITES:
        found = packages.of_suite(suite, cache)
        if found is not None and packages.with_needs(("bochs",), lambda _: False, lists=found):
            lists = found
            break
    chosen = programs.needed_packages(("bochs", "bochsbios", "vgabios"), lists=lists)
    version = next(package.version for package in chosen if package.name == "bochs")
    shim = resources.files("isthmus.qualification.kvm").joinpath("loopback.c").read_bytes()
    key = key_of(
        *(package.sha256 for package in chosen), _PLUGIN.pattern, shim, compiler_version("gcc")
    )

    def make(scratch: Path) -> Made:
        progress(f"fetching {len(chosen)} packages with Bochs {version} and its libraries")
        own = {_LOOPBACK: compiled({"loopback.c": shim}, scratch, "gcc", SHARED)}
        plugins = _plugins(scratch, chosen, lists)
        files = programs.files(chosen, (_BOCHS,), (_BIOS, _VIDEO), scratch=scratch, lists=lists)
        return Made(files=_flat(files) | plugins | own, facts={"version": version})

    stored = obtain(cache, "emulators", key, make)
    _startable(stored)
    return Bochs(folder=stored.folder, version=version)


def boot_cd(
    image: HostImage, words: str, *, cache: Path, scratch: Path, progress: Callable[[str], None]
) -> Path:
    """A CD that boots a host image with a kernel command line; made below ``scratch``.

    :raises EnvironmentLackError: a package is missing, or the CD cannot be written.
    """
    tools = _cd_tools(cache, progress)
    tree = scratch / "cd"
    (tree / "isolinux").mkdir(parents=True)
    for name in _BOOT:
        (tree / "isolinux" / Path(name).name).write_bytes(tools.read(Path(name).name))
    (tree / "isolinux" / "isolinux.cfg").write_text(
        f"DEFAULT host\nPROMPT 0\nLABEL host\nKERNEL /vmlinuz\nINITRD /initrd\nAPPEND {words}\n",
        encoding="ascii",
    )
    (tree / "vmlinuz").write_bytes(read_bytes(image.kernel, limit=256 << 20))
    (tree / "initrd").write_bytes(read_bytes(image.initrd, limit=512 << 20))
    path = scratch / "boot.iso"
    command = [
        *_loaded(tools.folder, "xorriso"), "-as", "mkisofs", "-quiet", "-o", str(path),
        "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot",
        "-boot-load-size", "4", "-boot-info-table", str(tree),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=120
    )
    if done.returncode != 0:
        raise EnvironmentLackError(
            f"{path}: the CD cannot be written: {done.stderr.strip()[-300:]}",
            remedy="free some space there",
        )
    return path


def settings(
    bochs: Bochs, cd: Path, model: str, memory_mib: int, mac: str, folder: Path, script: Path
) -> str:
    """A configuration for Bochs (bochsrc(5)), without display and sound.

    The CPU's own panics are reported only: at each exit from virtual-8086 mode under SVM Bochs has
    one that means nothing ("VM is set in long mode"), for it loads the host's EFER before its flags
    and then goes on rightly (cpu/svm.cc, SvmExitLoadHostState; cpu/flag_ctrl_pro.cc, setEFlags).

    :param model: of Bochs's CPU models (``bochs --help cpu``).
    :param script: its user network's settings, see :func:`network`.
    """
    return f"""\
display_library: rfb, options="timeout=0"
romimage: file={bochs.folder / Path(_BIOS).name}, options=fastboot
vgaromimage: file={bochs.folder / Path(_VIDEO).name}
cpu: model={model}, count=1, ips={_INSTRUCTIONS_PER_S}, ignore_bad_msrs=1
memory: guest={memory_mib}, host={memory_mib}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={cd}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={folder / "console.log"}
clock: sync=none
log: {folder / "bochs.log"}
panic: action=fatal, cpu0=report
error: action=ignore
info: action=ignore
debug: action=ignore
speaker: enabled=0
plugin_ctrl: e1000=1
pci: enabled=1, chipset=i440fx, slot1=e1000
e1000: enabled=1, mac={mac}, ethmod=slirp, script={script}
"""


def network(forwards: Mapping[int, int]) -> str:
    """Settings of Bochs's user network: ports of this machine's loopback lead to the host's."""
    lines = (f"hostfwd = tcp:127.0.0.1:{here}-10.0.2.15:{to}\n" for here, to in forwards.items())
    return "# slirp config\n" + "".join(lines)


def _plugins(scratch: Path, chosen: tuple[packages.Package, ...], lists: Lists) -> dict[str, bytes]:
    """Bochs's plugins under the names by which it opens them."""
    found = {}
    own = [package for package in chosen if package.name == "bochs"]
    for _, archive in packages.each_opened(own, scratch=scratch, lists=lists):
        for name in archive.names:
            if match := _PLUGIN.fullmatch(name):
                found[match[1]] = archive.read(name)
    return found


def _cd_tools(cache: Path, progress: Callable[[str], None]) -> Stored:
    chosen = programs.needed_packages(("isolinux", "syslinux-common", "xorriso"))
    key = key_of(*(package.sha256 for package in chosen))

    def make(scratch: Path) -> Made:
        progress("fetching what writes a boot CD")
        return Made(files=_flat(programs.files(chosen, (_XORRISO,), _BOOT, scratch=scratch)))

    stored = obtain(cache, "emulators", key, make)
    _startable(stored)
    return stored


def _flat(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {Path(name).name: content for name, content in files.items()}


def _startable(stored: Stored) -> None:
    (stored.folder / LOADER).chmod(0o755)


def _loaded(folder: Path, name: str) -> list[str]:
    """How a program is started with the libraries that came with it (ld.so(8))."""
    return [str(folder / LOADER), "--library-path", str(folder), str(folder / name)]
