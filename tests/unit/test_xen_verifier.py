"""Xen's own verifier (``verify-stream-v2``) as a witness: what we take and what we write, it takes.

It is a Python program in Debian's package ``xen-utils-*``, opened and not installed.  Debian 12's
follows no checkpoint and compares bytes with text in EMULATOR_XENSTORE_DATA, so streams with these
are left out; it checks less than we do, so what we refuse it may still take.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from isthmus.qualification.lab import packages
from isthmus.qualification.lab import xen_stream as made
from isthmus.translate.xen import transport
from isthmus.translate.xen.fault import StreamError
from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.report import Report
from isthmus.translate.xen.rules import chosen

AMD = chosen(rules(), "AuthenticAMD")
VERIFIER = re.compile(r"usr/lib/xen-[\d.]+/(bin/verify-stream-v2|lib/python/xen/.*\.py)")


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = list(filter(re.compile(r"xen-utils-[\d.]+").fullmatch, packages.names("xen-utils-4")))
    package = packages.find(names[-1]) if names else None
    if package is None:
        pytest.skip("apt's lists have no xen-utils")
    folder = tmp_path_factory.mktemp("xen-utils")
    with packages.opened(package, scratch=folder) as archive:
        for name in filter(VERIFIER.fullmatch, archive.names):
            path = folder / name.split("/", 3)[3]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
    return folder


def verified(verifier: Path, stream: bytes, form: str = "xl") -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, verifier / "bin/verify-stream-v2", "-v", "-f", form],
        input=stream, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(verifier / "lib/python")},
    )  # fmt: skip
    text = (done.stdout + done.stderr).decode(errors="replace")
    return subprocess.CompletedProcess(done.args, done.returncode, text, "")


def hvm() -> bytes:
    return made.stream(
        made.hvm_image(made.some_pages()), made.record(3, b"\2\0\0\0\0\0\0\0" + b"device state")
    )


@pytest.mark.parametrize("name", ["pv", "hvm"])
def test_xen_takes_the_streams_that_we_make_and_rewrite(name: str, verifier: Path) -> None:
    data = made.pv_stream() if name == "pv" else hvm()
    channel, report = made.InMemory(data), Report(None)
    transport.filtered(channel, AMD, report, to="AuthenticAMD")
    assert report.changes
    for stream in (data, bytes(channel.out)):
        done = verified(verifier, stream)
        assert done.returncode == 0, done.stdout
        assert "Libxl Record: End" in done.stdout


def test_xen_refuses_what_we_refuse(verifier: Path) -> None:
    for broken in (
        made.libxc(2, made.record(0x13), made.record(0)),
        made.libxc(3, made.record(0)),
        made.libxc(1, made.record(0x10), made.page_data([5 << 60], bytes(4096)), made.record(0)),
        made.libxc(1, made.record(2, b"\5\4" + bytes(6)), made.record(0)),
    ):
        assert verified(verifier, broken, "libxc").returncode == 1
        with pytest.raises(StreamError):
            transport.filtered(made.InMemory(broken), (), Report(None), to="")
