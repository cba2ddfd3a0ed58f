"""Source packages of apt's lists are read with their checksums, and laid out with their patches."""

import io
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from isthmus.errors import EnvironmentLackError
from isthmus.qualification.lab import packages, sources
from isthmus.qualification.lab.packages import HERE
from isthmus.qualification.lab.sources import Source

SHOWSRC = """\
Package: xen
Version: 4.17.5-1
Checksums-Sha256:
 aaaa 4357 xen_4.17.5-1.dsc
 bbbb 4735560 xen_4.17.5.orig.tar.xz
Directory: pool/main/x/xen

Package: xen
Version: 4.17.10-1
Checksums-Sha256:
 cccc 1 xen_4.17.10-1.dsc
Files:
 dddd 1 xen_4.17.10-1.dsc

"""


def tarball(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_versions_come_newest_first_with_their_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("no dpkg here")
    monkeypatch.setattr(packages, "apt", lambda *_words, **_more: SHOWSRC)
    newest, older = sources.versions("xen", HERE)
    assert (newest.version, newest.sums) == ("4.17.10-1", ("cccc",))
    assert (older.version, older.sums) == ("4.17.5-1", ("aaaa", "bbbb"))


def test_lists_of_ones_own_are_fetched_again_when_they_are_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An archive forgets the packages that its newer lists do not name."""
    updates: list[int] = []
    answers = [100, 0, 100]  # apt's exit codes: no network at first, and at last

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        updates.append(answers.pop(0))
        if updates[-1] == 0:
            (tmp_path / "lists" / "archive_main_binary-amd64_Packages").touch()
        return subprocess.CompletedProcess(command, updates[-1], "", "")

    monkeypatch.setattr(packages, "_run", run)

    def lists() -> packages.Lists | None:
        return packages.private_lists(tmp_path, "deb file:/ trixie main", "Packages")

    assert lists() is None
    assert lists() is not None
    assert lists() is not None
    assert updates == [100, 0]
    old = time.time() - packages.FRESH_S - 60
    os.utime(tmp_path / "fetched", (old, old))
    assert lists() is not None  # the old ones: better than none
    assert updates == [100, 0, 100]


PATCH = b"--- a/word\n+++ b/word\n@@ -1 +1 @@\n-upstream\n+debian\n"


@pytest.mark.parametrize("patch", [PATCH, PATCH.replace(b"-upstream", b"-another")])
def test_debians_patches_are_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: bytes
) -> None:
    if shutil.which("patch") is None:
        pytest.skip("no patch here")

    def download(_wanted: str, folder: Path, _lists: object) -> None:
        tarball(folder / "xen_4.17.5.orig.tar.xz", {"xen-4.17.5/word": b"upstream\n"})
        tarball(
            folder / "xen_4.17.5-1.debian.tar.xz",
            {"debian/patches/series": b"# none\nword.patch\n", "debian/patches/word.patch": patch},
        )

    monkeypatch.setattr(packages, "download_source", download)
    source = Source(name="xen", version="4.17.5-1", sums=("aa",))
    if patch is not PATCH:
        with pytest.raises(EnvironmentLackError, match=r"word\.patch does not apply"):
            sources.unpack(source, tmp_path, HERE, ("patch",))
        return
    root = sources.unpack(source, tmp_path, HERE, ("patch",))
    assert (root / "word").read_text() == "debian\n"
