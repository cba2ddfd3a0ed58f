"""Debian and Ubuntu packages as a source of guest parts: named, downloaded and opened without root.

Only the machine's own ``apt`` is used (its sources, keys and proxies), and nothing is installed:
``apt-get download`` writes one .deb into a private folder, whose SHA-256 must be the one in apt's
signed package lists, and ``dpkg-deb --fsys-tarfile`` (dpkg-deb(1)) turns it into a tar stream.
A package is content from outside, so its members are taken by name, sizes are bounded, and
nothing is ever unpacked to a path that the package chose.
"""

import contextlib
import functools
import hashlib
import os
import platform
import pwd
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Iterator
from pathlib import Path, PurePosixPath

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.values import Value

MAX_ARCHIVE_BYTES = 2 << 30
MAX_MEMBER_BYTES = 256 << 20
MAX_MEMBERS = 200_000
APT_TIMEOUT_S = 60
DOWNLOAD_TIMEOUT_S = 900
FRESH_S = 24 * 3600
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's keys, where its package puts them (debian-archive-keyring)."""
_ANY_ERROR = ("-o", "APT::Update::Error-Mode=any")  # else a list that did not come is a warning

_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Package(Value, frozen=True):
    """One version of one package as apt's lists describe it.

    ``depends`` are bare names, with what is only recommended; ``needs`` are without it.
    """

    name: str
    version: str
    sha256: str
    depends: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Lists(Value, frozen=True):
    """Package lists to read: options for apt; none for those of this machine."""

    options: tuple[str, ...] = ()


HERE = Lists()


class Archive:
    """The files of one opened .deb, read by name."""

    def __init__(self, tar: tarfile.TarFile, label: str) -> None:
        self._label = label
        self._members: dict[str, tarfile.TarInfo] = {}
        self._tar = tar
        for count, member in enumerate(tar):
            if count >= MAX_MEMBERS:
                raise InputError(f"{label}: more than {MAX_MEMBERS} members")
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"{label}: member {member.name!r} points out of the package")
            if member.isreg():
                self._members[str(path)] = member

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of all plain files, without a leading ``./``."""
        return tuple(self._members)

    def executable(self, name: str) -> bool:
        """Whether a file is a program, by its owner's permission."""
        member = self._members.get(name)
        return member is not None and bool(member.mode & 0o100)

    def read(self, name: str) -> bytes:
        """One file's content.

        :raises InputError: absent, or larger than ``MAX_MEMBER_BYTES``.
        """
        member = self._members.get(name)
        if member is None:
            raise InputError(f"{self._label}: has no file {name}")
        if member.size > MAX_MEMBER_BYTES:
            raise InputError(f"{self._label}: {name} is larger than {MAX_MEMBER_BYTES} bytes")
        file = self._tar.extractfile(member)
        if file is None:
            raise InputError(f"{self._label}: {name} is not a plain file")
        return file.read()


def find(name: str, lists: Lists = HERE) -> Package | None:
    """The candidate version of a package in apt's lists; None when the lists do not have it.

    :raises InputError: not a package name.
    :raises EnvironmentLackError: there is no apt here.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name}: not a package name", remedy="see `apt-cache search linux-image`")
    package = _package(apt("apt-cache", *lists.options, "show", "--no-all-versions", name))
    return package if package is not None and package.name == name else None


def _package(stanza: str) -> Package | None:
    fields = _fields(stanza)
    if not _SHA256.fullmatch(fields.get("SHA256", "")):
        return None
    return Package(
        name=fields.get("Package", ""),
        version=fields.get("Version", ""),
        sha256=fields["SHA256"],
        depends=(*_named(fields.get("Depends", "")), *_named(fields.get("Recommends", ""))),
        needs=(*_named(fields.get("Pre-Depends", "")), *_named(fields.get("Depends", ""))),
    )


def _named(field: str) -> tuple[str, ...]:
    """The bare names of a field of dependencies, of alternatives the first."""
    return tuple(
        part.split("|")[0].split("(")[0].strip().removesuffix(":any")
        for part in field.split(",")
        if part.strip()
    )


def of_suite(suite: str, cache: Path) -> Lists | None:
    """The lists of another suite of this machine's own distribution, kept below ``cache``.

    Nothing of this machine is changed.  None where they cannot be had.

    :param suite: for example ``trixie``.
    """
    if not _NAME.fullmatch(suite):
        raise InputError(f"{suite}: not the name of a suite")
    archive = _archive()
    if archive is None:
        return None
    keys = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    source = f"deb {keys}{archive} {suite} main\n"
    return private_lists(cache / "lists" / suite, source, "Packages")


def private_lists(folder: Path, sources: str, kind: str) -> Lists | None:
    """Lists of apt's own in ``folder``, fetched there daily; None where they cannot be had.

    An archive forgets the packages that its newer lists do not name.

    :param sources: what apt reads as its sources.list(5).
    :param kind: of the lists that must come, as apt ends their names: ``Packages``, ``Sources``.
    """
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    path = folder / "sources.list"
    path.write_text(sources, encoding="utf-8")
    lists = Lists(
        options=tuple(
            word
            for setting in (
                f"Dir::State::lists={folder / 'lists'}",
                f"Dir::Cache={folder / 'cache'}",
                f"Dir::Etc::sourcelist={path}",
                "Dir::Etc::sourceparts=/dev/null",
                "Acquire::Languages=none",
                # As root apt would become another user, who cannot write into our folder.
                f"APT::Sandbox::User={pwd.getpwuid(os.geteuid()).pw_name}",
            )
            for word in ("-o", setting)
        )
    )
    stamp = folder / "fetched"  # the lists themselves have the archive's times
    if not stamp.exists() or time.time() - stamp.stat().st_mtime > FRESH_S:
        with contextlib.suppress(EnvironmentLackError):
            command = ["apt-get", "-q", *lists.options, *_ANY_ERROR, "update"]
            if _run(command, cwd=None, timeout=APT_TIMEOUT_S).returncode == 0:
                stamp.touch()
    # Old ones are better than none, where the network is away.
    return lists if any((folder / "lists").glob(f"*_{kind}*")) else None


def _archive() -> str | None:
    """The address that this machine's apt has for its own distribution."""
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    rows = apt(
        "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    )  # fmt: skip
    for row in rows.splitlines():
        address, _, rest = row.partition(" ")
        if rest == f"{release} main":
            return address
    return None


def with_needs(
    roots: Collection[str], wanted: Callable[[str], bool], *, lists: Lists = HERE
) -> tuple[Package, ...]:
    """The packages ``roots`` and all that they need, by name; only what is ``wanted`` is followed.

    A name that no package has (a virtual package) is left out.

    :raises EnvironmentLackError: apt's lists do not have a root.
    """
    found: dict[str, Package] = {}
    asked: set[str] = set()
    waiting = set(roots)
    while waiting:
        asked |= waiting
        text = apt(
            "apt-cache", *lists.options, "show", "--no-all-versions", *sorted(waiting), partly=True
        )
        for stanza in text.split("\n\n"):
            package = _package(stanza)
            if package is not None and package.name in waiting:
                found[package.name] = package
        waiting = {
            name
            for package in found.values()
            for name in package.needs
            if name not in asked and _NAME.fullmatch(name) and wanted(name)
        }
    for root in roots:
        if root not in found:
            required(root)
    return tuple(found[name] for name in sorted(found))


def names(prefix: str, lists: Lists = HERE) -> tuple[str, ...]:
    """All package names in apt's lists that begin with ``prefix``, sorted."""
    return tuple(sorted(apt("apt-cache", *lists.options, "pkgnames", prefix).split()))


def required(name: str, lists: Lists = HERE) -> Package:
    """Like :func:`find`, but absence is an :class:`EnvironmentLackError` with its remedy."""
    package = find(name, lists)
    if package is None:
        raise EnvironmentLackError(
            f"package {name} is not in apt's lists here",
            remedy="run `apt-get update` as root (or name an own vmlinuz with --kernel)",
        )
    return package


@contextlib.contextmanager
def opened(package: Package, *, scratch: Path, lists: Lists = HERE) -> Iterator[Archive]:
    """Download a package into a private folder below ``scratch`` and open it.

    :raises EnvironmentLackError: it cannot be downloaded, or its content is not what apt's lists
        promise, or there is no room.
    """
    with contextlib.closing(each_opened((package,), scratch=scratch, lists=lists)) as only:
        for _, archive in only:
            yield archive


def each_opened(
    chosen: Collection[Package], *, scratch: Path, lists: Lists = HERE
) -> Generator[tuple[Package, Archive], None, None]:
    """Download packages with one call of apt, and open them one after the other.

    :raises EnvironmentLackError: as :func:`opened`.
    """
    with tempfile.TemporaryDirectory(prefix="package-", dir=scratch) as name:
        folder = Path(name)
        files = _download(chosen, folder, lists)
        for package in chosen:
            try:
                spool = _unwrapped(files[package.sha256], folder / "content.tar")
                with tarfile.open(spool, mode="r:") as tar:
                    yield package, Archive(tar, package.name)
            except tarfile.TarError as error:
                raise InputError(
                    f"{package.name}: its content is not a tar archive: {error}"
                ) from error
            except OSError as error:
                raise EnvironmentLackError(
                    f"{package.name}: cannot be opened below {scratch}: {error.strerror or error}",
                    remedy="free some space there or choose another folder with ISTHMUS_CACHE",
                ) from error


def _download(chosen: Collection[Package], folder: Path, lists: Lists) -> dict[str, Path]:
    """The packages' files by their SHA-256, which is the promised one."""
    # In its own folder apt needs no root; as root it only warns that its sandbox user cannot
    # write there.
    done = _run(
        [
            "apt-get",
            "-q",
            *lists.options,
            "download",
            *(f"{one.name}={one.version}" for one in chosen),
        ],
        cwd=folder,
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    found = {}
    for path in sorted(folder.glob("*.deb")):
        with path.open("rb") as file:
            found[hashlib.file_digest(file, "sha256").hexdigest()] = path
    label = ", ".join(one.name for one in chosen if one.sha256 not in found)[:200]
    if done.returncode != 0 or len(found) != len({one.sha256 for one in chosen}):
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise EnvironmentLackError(
            f"package {label} cannot be downloaded: {' '.join(lines)[:300] or 'no reason'}",
            remedy="check the network, or run `apt-get update` as root",
        )
    if label:
        raise EnvironmentLackError(
            f"package {label}: its SHA-256 is {', '.join(found)[:200]}, apt's lists say another",
            remedy="run `apt-get update` as root and try again",
        )
    return found


def download_source(wanted: str, folder: Path, lists: Lists) -> None:
    """Download a source package, ``NAME=VERSION``, into ``folder``; apt checks its SHA-256.

    :raises EnvironmentLackError: it cannot be had.
    """
    done = _run(
        ["apt-get", "-q", *lists.options, "source", "--download-only", wanted],
        cwd=folder,
        timeout=DOWNLOAD_TIMEOUT_S,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        raise EnvironmentLackError(
            f"the source of {wanted} cannot be downloaded: {' '.join(lines)[:300] or 'no reason'}",
            remedy="check the network, or run `apt-get update` as root",
        )


def newest_first(versions: Collection[str]) -> tuple[str, ...]:
    """Debian versions in falling order (deb-version(7)), as dpkg compares them."""

    def compare(one: str, other: str) -> int:
        words = ["dpkg", "--compare-versions", one, "lt", other]
        return 1 if _run(words, cwd=None, timeout=APT_TIMEOUT_S).returncode == 0 else -1

    return tuple(sorted(versions, key=functools.cmp_to_key(compare)))


def _unwrapped(deb: Path, spool: Path) -> Path:
    """Decompress the .deb's content once, bounded, so that its files can be read in any order."""
    if shutil.which("dpkg-deb") is None:
        raise EnvironmentLackError("dpkg-deb: no such program", remedy="install package dpkg")
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(deb)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as child,
        spool.open("wb") as out,
    ):  # fmt: skip
        assert child.stdout is not None
        total = 0
        while block := child.stdout.read(1 << 20):
            total += len(block)
            if total > MAX_ARCHIVE_BYTES:
                child.kill()
                raise InputError(f"{deb.name}: unpacks to more than {MAX_ARCHIVE_BYTES} bytes")
            out.write(block)
    if child.returncode != 0:
        raise InputError(f"{deb.name}: dpkg-deb cannot read it")
    return spool


def _fields(text: str) -> dict[str, str]:
    """The first stanza of a control file as a mapping; continuation lines are dropped."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if fields:
                break
            continue
        key, colon, value = line.partition(":")
        if colon and not line[0].isspace():
            fields.setdefault(key, value.strip())
    return fields


def apt(*command: str, partly: bool = False) -> str:
    """What apt prints; ``partly``: also where it does not know one of several names."""
    done = _run(list(command), cwd=None, timeout=APT_TIMEOUT_S)
    return done.stdout if done.returncode == 0 or partly else ""


def _run(
    command: list[str], *, cwd: Path | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            cwd=cwd, capture_output=True, text=True, errors="replace", check=False,
            timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentLackError(
            f"{command[0]}: no such program",
            remedy="guest images are made from Debian or Ubuntu packages; "
            "elsewhere name an own vmlinuz with --kernel",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLackError(
            f"`{' '.join(command)}` did not end within {timeout:g} s", remedy="check the network"
        ) from error
