"""A cache of things that can be made again, each known by the hash of all that goes into it.

An entry is a folder of files with a manifest of their SHA-256.  It is made whole under another
name and then renamed, under a lock, so that two makers at once cannot disturb each other; an entry
that does not match its manifest is made again.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from isthmus.errors import EnvironmentLackError, InputError
from isthmus.values import Value, read_value, to_json

_MANIFEST = "manifest.json"
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")


class Manifest(Value, frozen=True):
    """What an entry holds: SHA-256 by file name, and facts that its maker wanted remembered."""

    files: Mapping[str, str]
    facts: Mapping[str, str] = {}


class Made(Value, frozen=True):
    """The content for a new entry."""

    files: Mapping[str, bytes]
    facts: Mapping[str, str] = {}


class Stored(Value, frozen=True):
    """A verified entry of the cache."""

    folder: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """A file's content."""
        return (self.folder / name).read_bytes()


def key_of(*parts: bytes | str) -> str:
    """A key for an entry: the hash of all parts, each with its length, so that none can shift."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:32]


def obtain(cache: Path, kind: str, key: str, make: Callable[[Path], Made]) -> Stored:
    """The entry ``kind``/``key``, made by ``make`` (which gets a scratch folder) if need be.

    :raises EnvironmentLackError: the cache cannot be written.
    """
    home = cache / kind
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = _verified(home / key)
        if found is not None:
            return found
        with _locked(home / f".{key}.lock"):
            found = _verified(home / key)  # another maker may have been quicker
            if found is None:
                found = _make(home, key, make)
            return found
    except OSError as error:
        raise EnvironmentLackError(
            f"{home}: cannot be written: {error.strerror or error}",
            remedy="free some space, or set ISTHMUS_CACHE to another folder",
        ) from error


def _make(home: Path, key: str, make: Callable[[Path], Made]) -> Stored:
    with tempfile.TemporaryDirectory(prefix=".making-", dir=home) as name:
        scratch = Path(name)
        made = make(scratch)
        fresh = scratch / "entry"
        fresh.mkdir(mode=0o755)
        for file, data in made.files.items():
            (fresh / file).write_bytes(data)
        sums = {file: hashlib.sha256(data).hexdigest() for file, data in made.files.items()}
        manifest = Manifest(files=sums, facts=made.facts)
        (fresh / _MANIFEST).write_bytes(to_json(manifest))
        if (home / key).exists():
            shutil.rmtree(home / key)  # it did not match its manifest
        fresh.rename(home / key)
    return Stored(folder=home / key, manifest=manifest)


def _verified(folder: Path) -> Stored | None:
    """The entry, if every file is there and has the content that was put there."""
    with contextlib.suppress(InputError, OSError):
        manifest = read_value(folder / _MANIFEST, Manifest)
        for file, digest in manifest.files.items():
            if not _FILE.fullmatch(file):
                return None
            with (folder / file).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    return None
        return Stored(folder=folder, manifest=manifest)
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
