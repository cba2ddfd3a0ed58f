"""``isthmus cpu``: what CPU dumps of any format say, and what changed between two of them."""

from collections.abc import Callable
from pathlib import Path

import click

from isthmus.cli.hosts import HERE
from isthmus.cpu.features import FEATURES, Feature
from isthmus.cpu.fingerprint import Fingerprint
from isthmus.cpu.identify import identify
from isthmus.cpu.model import CpuModel
from isthmus.cpu.probe import this_machine
from isthmus.cpu.readers.recognise import read_cpu
from isthmus.errors import InputError
from isthmus.values import Value, from_json, read_bytes, to_json

_SPELLINGS: dict[str, Callable[[Feature], str | None]] = {
    "qemu": lambda feature: feature.qemu,
    "libvirt": lambda feature: feature.libvirt,
    "linux": lambda feature: feature.linux,
    "xen": lambda feature: feature.xen,
    "vmware": lambda feature: f"cpuid.{feature.vmware}" if feature.vmware else None,
}


class Shown(Value, frozen=True):
    """What ``cpu show --json`` prints for a file that could be read."""

    file: str
    ok: bool
    vendor: str
    family: int
    model: int
    stepping: int
    codename: str | None
    brand: str
    features: tuple[str, ...]
    phys_bits: int | None
    linear_bits: int | None
    tsc_khz: int | None
    microcode: int | None
    xcr0: int | None
    unknown: tuple[str, ...]


class Unread(Value, frozen=True):
    """What ``cpu show --json`` prints for a file that could not be read."""

    file: str
    ok: bool
    error: str


class Drift(Value, frozen=True):
    """What ``cpu diff --json`` prints: features gained and lost, other fields that changed."""

    old: str
    new: str
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    changed: dict[str, tuple[str, str]]

    @property
    def any(self) -> bool:
        """Whether anything changed."""
        return bool(self.gained or self.lost or self.changed)


@click.group()
def cpu() -> None:
    """Read CPU dumps of any format: cpuid -r, InstLatx64, libcpuid, libvirt, Xen, VMware, cpuinfo.

    \b
    Examples:
      isthmus cpu show here
      isthmus cpu fingerprint --output host1.json
      isthmus cpu show host1.txt host2.xml
      isthmus cpu show --json --names libvirt dumps/*.txt
      isthmus cpu diff before-update.txt after-update.txt
    """


@cpu.command(no_args_is_help=True)
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--names", type=click.Choice([*_SPELLINGS, "isthmus"]), default="isthmus", show_default=True,
    help="Name features as this software does; only those that it has a name for.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each file.")
def show(files: tuple[Path, ...], names: str, as_json: bool) -> int:
    """Show the CPU of every FILE; the format is recognised by its content, `here` is this machine.

    A file that cannot be read is told of and the rest go on; the exit code is then 1.

    \b
    Examples:
      isthmus cpu show /proc/cpuinfo
      isthmus cpu show --json --names libvirt dumps/*.txt
    """
    failed = 0
    for path in files:
        try:
            model = this_machine() if str(path) == HERE else read_cpu(path)
        except InputError as error:
            failed += 1
            if as_json:
                line = Unread(file=str(path), ok=False, error=error.message)
                click.echo(to_json(line).decode())
            else:
                click.echo(f"isthmus: error: {error.message}", err=True)
            continue
        shown = _shown(path, model, names)
        click.echo(to_json(shown).decode() if as_json else _told(shown))
    return 1 if failed else 0


def spelled(features: frozenset[str], names: str) -> tuple[str, ...]:
    """The features in the spelling of ``names``, sorted; what it has no name for is left out."""
    if names == "isthmus":
        return tuple(sorted(features))
    spelling = _SPELLINGS[names]
    known = (FEATURES[name] for name in features if name in FEATURES)
    return tuple(sorted({text for feature in known if (text := spelling(feature))}))


def _shown(path: Path, model: CpuModel, names: str) -> Shown:
    kind = identify(model)
    return Shown(
        file=str(path),
        ok=True,
        vendor=model.vendor,
        family=model.family,
        model=model.model,
        stepping=model.stepping,
        codename=kind.codename if kind else None,
        brand=model.brand,
        features=spelled(model.features, names),
        phys_bits=model.phys_bits,
        linear_bits=model.linear_bits,
        tsc_khz=model.tsc_khz,
        microcode=model.microcode,
        xcr0=model.xcr0,
        unknown=model.unknown,
    )


def _told(shown: Shown) -> str:
    numbers = f"family {shown.family} model {shown.model} stepping {shown.stepping}"
    lines = [
        f"{shown.file}: {shown.brand or 'no brand string'}",
        f"  {shown.vendor} {numbers} ({shown.codename or 'code name not known'})",
    ]
    if shown.phys_bits:
        lines.append(f"  addresses: {shown.phys_bits} bits physical, {shown.linear_bits} linear")
    lines.append(f"  {len(shown.features)} features: {' '.join(shown.features)}")
    if shown.unknown:
        lines.append(f"  it cannot tell: {', '.join(shown.unknown)}")
    return "\n".join(lines)


@cpu.command(no_args_is_help=True)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def diff(old: Path, new: Path, as_json: bool) -> int:
    """Show what changed between two dumps of one host, and what it does to guests.

    A microcode or BIOS update can take features away or add them: a baseline made before it is
    then stale.  The exit code is 0 if nothing changed, else 1.

    \b
    Examples:
      isthmus cpu diff before-update.txt after-update.txt
    """
    drift = compared(read_cpu(old), read_cpu(new), str(old), str(new))
    before, after = _fingerprint(old), _fingerprint(new)
    if before is not None and after is not None:
        drift = drift.replace(changed=drift.changed | surroundings(before, after))
    if as_json:
        click.echo(to_json(drift, indent=2).decode())
    else:
        click.echo("\n".join(_drifted(drift)) or "nothing changed that a guest can notice")
    return 1 if drift.any else 0


@cpu.command()
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write it to this file [default: the standard output].",
)  # fmt: skip
def fingerprint(output: Path | None) -> None:
    """Store what guests may come to depend on of this host, to compare after an update.

    CPUID of every kind of core, feature MSRs (root, module msr), microcode, kernel, BIOS and the
    kernel's verdicts on vulnerabilities.

    \b
    Examples:
      isthmus cpu fingerprint --output before.json
      isthmus cpu diff before.json after.json
    """
    from isthmus.cpu.fingerprint import take

    document = to_json(take(), indent=1)
    if output is None:
        click.echo(document.decode())
        return
    try:
        output.write_bytes(document + b"\n")
    except OSError as error:
        raise InputError(
            f"{output}: {error.strerror or error}", remedy="name a place that can be written"
        ) from error


def _fingerprint(path: Path) -> Fingerprint | None:
    data = read_bytes(path)
    if b'"fingerprint"' not in data:
        return None
    try:
        return from_json(data, Fingerprint, where=str(path))
    except InputError:
        return None  # another format's document, read as a CPU already


def surroundings(old: Fingerprint, new: Fingerprint) -> dict[str, tuple[str, str]]:
    """What changed of a host besides its CPU's features: software, and verdicts on flaws."""
    fields = ("kernel", "bios_vendor", "bios_version", "bios_date")
    pairs = {name: (str(getattr(old, name)), str(getattr(new, name))) for name in fields}
    flaws = sorted(old.vulnerabilities.keys() | new.vulnerabilities.keys())
    pairs |= {
        f"vulnerability {name}": (
            old.vulnerabilities.get(name, "not named"),
            new.vulnerabilities.get(name, "not named"),
        )
        for name in flaws
    }
    pairs["kinds of cores"] = (str(len(old.cores)), str(len(new.cores)))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def compared(old: CpuModel, new: CpuModel, old_name: str, new_name: str) -> Drift:
    """The drift from one model to another."""
    fields = (
        "vendor", "family", "model", "stepping", "brand", "level", "xlevel", "phys_bits",
        "linear_bits", "tsc_khz", "microcode", "xcr0", "xsave",
    )  # fmt: skip
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in fields}
    return Drift(
        old=old_name,
        new=new_name,
        gained=tuple(sorted(new.features - old.features)),
        lost=tuple(sorted(old.features - new.features)),
        changed={name: (str(a), str(b)) for name, (a, b) in pairs.items() if a != b},
    )


_EFFECTS = {
    "instruction": "guests that use it die by an invalid opcode after a restart of the host",
    "state": "guests whose state has it cannot be loaded",
    "kernel": "kernels that chose it at boot meet a fault",
    "mitigation": "guests booted before have chosen other defences",
    "hint": "only speed changes",
    "hypervisor": "guests of the hypervisor, or nested ones, notice it",
}


def _drifted(drift: Drift) -> list[str]:
    lines = [f"{name}: {old} -> {new}" for name, (old, new) in drift.changed.items()]
    for name in drift.lost:
        kind = FEATURES[name].kind if name in FEATURES else "kernel"
        lines.append(f"- {name} ({kind}): {_EFFECTS[kind]}; level the pool again")
    for name in drift.gained:
        kind = FEATURES[name].kind if name in FEATURES else "kernel"
        lines.append(f"+ {name} ({kind}): new guests may see it; levels keep guests as they are")
    return lines
