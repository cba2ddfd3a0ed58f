"""A certificate authority for a test, and certificates of libvirt hosts by it (tlscerts.rst)."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from isthmus.qualification.lab.libvirt_host import LibvirtHost

NAMES = ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem")


def certify(hosts: Mapping[str, LibvirtHost], folder: Path) -> None:
    """Give each host certificates of the authority in ``folder``, which is made if need be."""
    folder.mkdir(exist_ok=True)
    key, root = folder / "ca-key.pem", folder / "ca-cert.pem"
    if not root.exists():
        _openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=the lab",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign",
            "-keyout", str(key), "-out", str(root),
        )  # fmt: skip
    for host in hosts.values():
        place = host.folder / "pki"
        (place / "ca-cert.pem").write_bytes(root.read_bytes())
        for role in ("server", "client"):
            request, extensions = folder / "request.pem", folder / "extensions"
            extensions.write_text(
                f"subjectAltName=DNS:{host.name},IP:{host.address}\n"
                f"keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage={role}Auth\n"
            )
            _openssl(
                "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host.name}",
                "-keyout", str(place / f"{role}-key.pem"), "-out", str(request),
            )  # fmt: skip
            _openssl(
                "x509", "-req", "-in", str(request), "-CA", str(root), "-CAkey", str(key),
                "-CAcreateserial", "-days", "2", "-extfile", str(extensions),
                "-out", str(place / f"{role}-cert.pem"),
            )  # fmt: skip


def withdraw(hosts: Mapping[str, LibvirtHost]) -> None:
    """Take the certificates away."""
    for host in hosts.values():
        for name in NAMES:
            (host.folder / "pki" / name).unlink(missing_ok=True)


def _openssl(*words: str) -> None:
    try:
        done = subprocess.run(
            ["openssl", *words], capture_output=True, text=True, check=False, timeout=120
        )
    except FileNotFoundError:
        pytest.skip("no openssl here")
    assert done.returncode == 0, done.stderr
