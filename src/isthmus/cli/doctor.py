"""``isthmus doctor``: what this machine offers for live migration, and how to get what it lacks.

Every answer comes from trying the thing itself: a guest is run under KVM, programs are started, a
static program is compiled.  That a file exists proves nothing.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from isthmus.errors import EnvironmentLackError
from isthmus.hypervisor.qemu.binary import DEFAULT_NAME, find_qemu
from isthmus.hypervisor.qemu.engine import Accelerator, choose_accelerator
from isthmus.places import cache_folder, run_folder, state_folder
from isthmus.values import Value, to_json

OLDEST_QEMU = (7, 2, 0)
"""The oldest QEMU that Isthmus is tested with (Debian 12)."""
NEEDED_BYTES = 1 << 30
"""Free space for a kernel package, its unpacked modules and guest images, with room to spare."""
BUSYBOXES = ("/bin/busybox", "/usr/bin/busybox", "/usr/lib/initramfs-tools/bin/busybox")


class Check(Value, frozen=True):
    """One thing looked at: whether it is there, whether Isthmus cannot do without it.

    ``detail`` says what was found, ``remedy`` the command that brings what is missing.
    """

    name: str
    ok: bool
    detail: str
    needed: bool = True
    remedy: str = ""


class Report(Value, frozen=True):
    """All checks of one machine; ``ok`` where nothing needed is missing."""

    ok: bool
    checks: tuple[Check, ...]


def examine(qemu: str = DEFAULT_NAME) -> Iterator[Check]:
    """Look at this machine, one check after the other (about a second in all)."""
    yield from _qemu(qemu)
    yield _busybox()
    yield _compiler()
    yield _program("setpriv", "util-linux", "--version")
    yield _program("objcopy", "binutils", "--version")
    yield _kernel_packages()
    for name, folder in (
        ("disk space for the cache", cache_folder()),
        ("disk space for records", state_folder()),
        ("disk space for sockets and consoles", run_folder()),
    ):
        yield disk_space(name, folder, NEEDED_BYTES if folder == cache_folder() else 16 << 20)


def _qemu(name: str) -> Iterator[Check]:
    """QEMU's version, then whether KVM truly runs a guest under it."""
    install = "apt-get install qemu-system-x86"
    try:
        qemu = find_qemu(name)
    except EnvironmentLackError as error:
        yield Check(name="QEMU", ok=False, detail=error.message, remedy=error.remedy or install)
        return
    old = qemu.version < OLDEST_QEMU
    oldest = ".".join(map(str, OLDEST_QEMU[:2]))
    yield Check(
        name="QEMU",
        ok=not old,
        detail=f"{qemu.version_text} at {qemu.path}" + (f", older than {oldest}" if old else ""),
        remedy=install if old else "",
    )
    chosen = choose_accelerator(qemu)
    usable = chosen.accelerator is Accelerator.KVM
    yield Check(
        name="KVM",
        ok=usable,
        needed=False,
        detail=chosen.reason if usable else f"{chosen.reason}; guests run under TCG instead",
        remedy="" if usable else _kvm_remedy(),
    )


def _kvm_remedy() -> str:
    device = Path("/dev/kvm")
    if not device.exists():
        return "turn on VT-x or AMD-V in the firmware, then modprobe kvm_intel or kvm_amd"
    if not os.access(device, os.R_OK | os.W_OK):
        return "usermod -aG kvm $USER, then log in again"
    return "use a machine whose own hypervisor gives nested virtualisation"


def _busybox() -> Check:
    for path in map(Path, BUSYBOXES):
        # A dynamically linked one names its loader and would not run in a guest.
        if path.is_file() and b"/ld-linux" not in path.read_bytes():
            return Check(name="static busybox", ok=True, detail=str(path))
    return Check(
        name="static busybox",
        ok=False,
        detail="none on this machine",
        remedy="apt-get install busybox-static",
    )


def _compiler() -> Check:
    """Compile and run a static program, as the payload of lab guests is one."""
    name, remedy = "C compiler", "apt-get install gcc libc6-dev"
    with tempfile.TemporaryDirectory(prefix="isthmus-doctor-") as folder:
        program = Path(folder, "trial")
        source = '#include <stdio.h>\nint main(void) { return puts("trial") < 0; }\n'
        try:
            done = subprocess.run(
                ["gcc", "-static", "-x", "c", "-o", str(program), "-"],
                input=source, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                said = subprocess.run([str(program)], capture_output=True, timeout=10, check=False)
                if said.stdout == b"trial\n":
                    return Check(name=name, ok=True, detail="gcc builds a static program")
            detail = (done.stderr.strip().splitlines() or ["its program does not run"])[-1]
        except (OSError, subprocess.TimeoutExpired) as error:
            detail = f"gcc: {error}"
    return Check(name=name, ok=False, detail=detail[:200], remedy=remedy)


def _program(name: str, package: str, *arguments: str) -> Check:
    remedy = f"apt-get install {package}"
    found = shutil.which(name)
    if found is None:
        return Check(name=name, ok=False, detail="no such program", remedy=remedy)
    try:
        done = subprocess.run(
            [found, *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        return Check(name=name, ok=False, detail=f"{found}: {error}", remedy=remedy)
    if done.returncode:
        return Check(name=name, ok=False, detail=f"{found} does not work", remedy=remedy)
    version = (done.stdout.splitlines() or [""])[0]
    return Check(name=name, ok=True, detail=version or found)


def _kernel_packages() -> Check:
    """Whether apt's lists know a kernel for lab guests; without them one names an own vmlinuz."""
    name = "kernel packages"
    try:
        done = subprocess.run(
            ["apt-cache", "pkgnames", "linux-image-"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(
            name=name,
            ok=False,
            needed=False,
            detail=f"apt-cache: {error}",
            remedy="isthmus demo --kernel VMLINUZ takes a kernel of your own",
        )
    known = [word for word in done.stdout.split() if "cloud-amd64" in word or "virtual" in word]
    if not known:
        return Check(name=name, ok=False, detail="apt's lists know none", remedy="apt-get update")
    return Check(name=name, ok=True, detail=f"{len(known)} cloud kernels in apt's lists")


def disk_space(name: str, folder: Path, needed: int) -> Check:
    """Whether ``folder``, or its nearest folder that exists, is ours to write and has room."""
    home = folder
    while not home.exists() and home != home.parent:
        home = home.parent
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        return Check(
            name=name,
            ok=False,
            detail=f"{home}: cannot be written",
            remedy=f"chown {os.geteuid()} {home}, or name another folder (docs/cli.md)",
        )
    free = shutil.disk_usage(home).free
    return Check(
        name=name,
        ok=free >= needed,
        detail=f"{free >> 20} MiB free in {home}",
        remedy="" if free >= needed else f"free {(needed - free) >> 20} MiB in {home}",
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--qemu", default=DEFAULT_NAME, show_default=True, help="Which QEMU to look at.")
def doctor(*, as_json: bool, qemu: str) -> None:
    """Tell what this machine offers for live migration, and how to get what it lacks.

    Exits with 6 when something that Isthmus needs is missing.

    \b
    Examples:
      isthmus doctor
      isthmus doctor --json | jq '.checks[] | select(.ok | not)'
      isthmus doctor --qemu /opt/qemu/bin/qemu-system-x86_64
    """
    checks: list[Check] = []
    for check in examine(qemu):
        checks.append(check)
        if not as_json:
            _show(check)
    lacking = [check for check in checks if check.needed and not check.ok]
    if as_json:
        report = Report(ok=not lacking, checks=tuple(checks))
        click.echo(to_json(report, indent=2).decode())
    if lacking:
        raise EnvironmentLackError(
            f"this machine lacks: {', '.join(check.name for check in lacking)}",
            remedy="script/setup brings what apt can bring",
        )


def _show(check: Check) -> None:
    word, colour = (
        ("ok", "green")
        if check.ok
        else ("missing", "red")
        if check.needed
        else ("absent", "yellow")
    )
    click.echo(f"{click.style(f'{word:8}', fg=colour)}{check.name}: {check.detail}")
    if not check.ok and check.remedy:
        click.echo(f"{'':8}{check.remedy}")
