"""`isthmus translate module`: the module for a guest's kernel, as sources for DKMS or built."""

import tempfile
from pathlib import Path

import click

from isthmus import __version__
from isthmus.cli import lab
from isthmus.errors import InputError, RefusedError

_PACKAGE = "isthmus-translate"


@click.group()
def module() -> None:
    """Make the kernel module that translates inside a guest.

    It has to be loaded in the guest before the guest meets an instruction that its CPU lacks: best
    before the move, at home, where it changes nothing.

    \b
    Examples:
      isthmus translate module export /usr/src/isthmus-translate-0.1.0
      isthmus translate module build --headers /lib/modules/6.1.0-18-amd64/build
      isthmus translate module check
      isthmus translate module loaded web
    """


@module.command("loaded")
@click.argument("guest")
@click.option("--not", "gone", is_flag=True, help="It has been taken away again.")
def loaded_command(guest: str, gone: bool) -> None:
    """Tell Isthmus that GUEST's kernel has the module loaded, so that it is translated there.

    Nothing outside the guest can see it.  A guest that has not, and of which this is said, dies at
    the first instruction that its next host lacks.

    \b
    Examples:
      isthmus translate module loaded web          after modprobe isthmus_translate in the guest
      isthmus translate module loaded web --not    before rmmod
    """
    from isthmus.migration.arming import note_module

    note_module(lab.store(), guest, loaded=not gone)
    click.echo(f"{guest}: is translated {'outside' if gone else 'inside'} from its next move on")


@module.command("check")
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="FOLDER",
    default=Path("/"), show_default=True,
    help="Where the guest's /sys and /proc are: in the guest, or copied out of it.",
)  # fmt: skip
@click.option("--signed", is_flag=True, help="The module has a signature that the guest trusts.")
@lab.json_option
def check_command(root: Path, signed: bool, as_json: bool) -> None:
    """Tell whether a guest's kernel takes the module; exit code 3 if it does not.

    \b
    Examples:
      isthmus translate module check                     in the guest
      isthmus translate module check --root ./guest --signed --json
    """
    from isthmus.translate.inside.admission import FILES, obstacles, taints
    from isthmus.values import to_json

    lockdown, sig_enforce, tainted = (_text(root / name) for name in FILES)
    found = obstacles(lockdown=lockdown, sig_enforce=sig_enforce, signed=signed)
    marks = not found and not signed and taints(tainted)
    if as_json:
        click.echo(to_json({"schema": 1, "obstacles": found, "taints": marks}))
    else:
        for one in found:
            click.echo(f"{one.why}\n  {one.source}\n  what to do: {one.remedy}")
        if not found:
            click.echo("the kernel takes it")
        if marks:
            click.echo("  it will be tainted: an unsigned module (/proc/sys/kernel/tainted)")
    if found:
        raise click.exceptions.Exit(RefusedError.exit_code)


def _text(path: Path) -> str:
    """What the file begins with; empty if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(256).decode("ascii", "replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", remedy="run it as root, or name a copy with --root"
        ) from error


@module.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@lab.json_option
def export_command(folder: Path, as_json: bool) -> None:
    """Write the module's sources into a new FOLDER, with a dkms.conf.

    \b
    Examples:
      isthmus translate module export /usr/src/isthmus-translate-0.1.0
    """
    from isthmus.translate.inside import build
    from isthmus.values import to_json

    build.export(folder, version=__version__)
    steps = [
        f"copy {folder} into the guest, as /usr/src/{_PACKAGE}-{__version__}",
        f"dkms add {_PACKAGE}/{__version__}",
        f"dkms build {_PACKAGE}/{__version__}",
        f"dkms install {_PACKAGE}/{__version__}",
        *_loading(),
    ]
    if as_json:
        click.echo(to_json({"folder": folder, "version": __version__, "next": steps}))
        return
    click.echo(f"{folder}: sources of {build.NAME}; DKMS builds them anew for each kernel")
    _tell(steps)


@module.command("build")
@click.option(
    "--headers", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
    help="The build folder of the guest's kernel: /lib/modules/RELEASE/build.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    default=Path("isthmus_translate.ko"), show_default=True, help="The module's file.",
)  # fmt: skip
@lab.json_option
def build_command(headers: Path, output: Path, as_json: bool) -> None:
    """Build the module for one kernel release; it fits no other.

    \b
    Examples:
      isthmus translate module build --headers /lib/modules/6.1.0-18-amd64/build
      isthmus translate module build --headers ./headers --output guest.ko
    """
    from isthmus.translate.inside import build
    from isthmus.values import to_json

    with tempfile.TemporaryDirectory(prefix="isthmus-module-") as name:
        data = build.build(headers.absolute(), Path(name) / "build", build.sources())
    try:
        output.write_bytes(data)
    except OSError as error:
        raise InputError(
            f"{output}: {error.strerror}", remedy="name a place that can be written (--output)"
        ) from error
    sign = f"{headers}/scripts/sign-file sha256 MOK.priv MOK.der {output}"
    steps = [
        f"sign it where the guest takes no other (Secure Boot, module.sig_enforce=1): {sign}",
        f"copy {output} into the guest, into /lib/modules/RELEASE/updates, then depmod -a",
        *_loading(),
    ]
    if as_json:
        click.echo(to_json({"file": output, "bytes": len(data), "next": steps}))
        return
    click.echo(f"{output}: {len(data)} bytes, for the kernel of {headers} only")
    _tell(steps)


def _loading() -> list[str]:
    """What is the same for both ways to get it."""
    enrol = (
        "under Secure Boot: mokutil --import MOK.der (DKMS signs with its own"
        " /var/lib/dkms/mok.pub), then confirm the key at the next boot"
    )
    return [
        enrol,
        "modprobe isthmus_translate (before the move; after it only a guest that still runs can)",
        "echo isthmus_translate > /etc/modules-load.d/isthmus.conf, so that each boot loads it",
        "isthmus translate module loaded GUEST, on the host: nothing outside can see that it is",
    ]


def _tell(steps: list[str]) -> None:
    click.echo("next:")
    for number, step in enumerate(steps, 1):
        click.echo(f"  {number}. {step}")
