"""Debian source packages: named, downloaded by apt, which checks them, and laid out to be built.

``apt-get source --download-only`` takes a source package whose files must have the SHA-256 of
apt's signed source lists.  Few machines have those, so they are asked for in a folder of ours, at
the addresses that this machine's apt has already.  Layout of such a package ("3.0 (quilt)"):
dpkg-source(1).
"""

import platform
import subprocess
import tarfile
from pathlib import Path

from isthmus.errors import EnvironmentLackError
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.packages import KEYRING, Lists
from isthmus.values import Value

_ROWS = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
         "Created-By: Packages")  # fmt: skip
PATCH_TIMEOUT_S = 120


class Source(Value, frozen=True):
    """One version of a source package; ``sums`` are its files' SHA-256 from apt's signed lists."""

    name: str
    version: str
    sums: tuple[str, ...]


def source_lists(folder: Path) -> Lists | None:
    """The source lists of this machine's own distribution, fetched into ``folder``.

    None where they cannot be had.
    """
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    keys = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    lines = []
    for row in packages.apt(*_ROWS).splitlines():
        address, _, rest = row.partition(" ")
        suite, _, component = rest.partition(" ")
        if release and component == "main" and suite.split("-")[0] == release:
            lines.append(f"deb-src {keys}{address} {suite} main\n")
    if not lines:
        return None
    return packages.private_lists(folder, "".join(dict.fromkeys(lines)), "Sources")


def versions(name: str, lists: Lists) -> tuple[Source, ...]:
    """The versions of a source package in the lists, the newest first."""
    found: dict[str, Source] = {}
    text = packages.apt("apt-cache", *lists.options, "showsrc", "--only-source", name)
    for stanza in text.split("\n\n"):
        version, sums, within = "", [], False
        for line in stanza.splitlines():
            if line.startswith("Version: "):
                version = line.split()[1]
            within = line.startswith("Checksums-Sha256:") or (within and line.startswith(" "))
            if within and line.startswith(" "):
                sums.append(line.split()[0])
        if version and sums:
            found[version] = Source(name=name, version=version, sums=tuple(sums))
    ordered = packages.newest_first(tuple(found))
    return tuple(found[version] for version in ordered)


def unpack(source: Source, folder: Path, lists: Lists, patch: tuple[str, ...]) -> Path:
    """Download a source package into ``folder``, and lay it out with Debian's patches applied.

    :param patch: the command line of patch(1).
    :raises EnvironmentLackError: it cannot be had, or is not what the lists promise.
    """
    packages.download_source(f"{source.name}={source.version}", folder, lists)
    tree = folder / "tree"
    tree.mkdir()
    for path in sorted(folder.glob("*.orig.tar.*")):
        _extract(path, tree)
    inner = [entry for entry in tree.iterdir() if entry.is_dir()]
    root = inner[0] if len(inner) == 1 else tree
    for path in sorted(folder.glob("*.debian.tar.*")):
        _extract(path, root)
    patches = root / "debian" / "patches"
    series = patches / "series"
    for line in series.read_text(encoding="utf-8").splitlines() if series.exists() else ():
        name = line.split("#")[0].strip()
        if not name:
            continue
        done = subprocess.run(
            [*patch, "-s", "-p1", "-f", "-i", str(patches / name)],
            cwd=root, capture_output=True, text=True, errors="replace", check=False,
            timeout=PATCH_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise EnvironmentLackError(
                f"{source.name} {source.version}: patch {name} does not apply:"
                f" {done.stdout.strip()[-300:]}"
            )
    return root


def _extract(path: Path, into: Path) -> None:
    try:
        with tarfile.open(path) as tar:
            # The filter is not in every Python 3.11 (docs.python.org, tarfile, "Supporting older
            # Python versions"); who signed this package is trusted to be built and run anyway.
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
            tar.extractall(into)  # noqa: S202
    except (tarfile.TarError, OSError) as error:
        raise EnvironmentLackError(f"{path.name}: cannot be unpacked: {error}") from error
