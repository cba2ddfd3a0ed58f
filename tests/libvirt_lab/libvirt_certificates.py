"""A certificate authority for a test, and certificates of libvirt hosts by it (tlscerts.rst)."""

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from isthmus.qualification.lab.libvirt_host import LibvirtHost

NAMES = ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem")


def certify(hosts: Mapping[str, LibvirtHost], folder: Path) -> None:
    """Give each host certificates of the authority in ``folder``, which is made if need be."""
    root = _authority(folder)
    for host in hosts.values():
        place = host.folder / "pki"
        (place / "ca-cert.pem").write_bytes(root.read_bytes())
        for role in ("server", "client"):
            _sign(
                folder, host.name, role, place / f"{role}-key.pem", place / f"{role}-cert.pem",
                f"DNS:{host.name},IP:{host.address}",
            )  # fmt: skip


def _authority(folder: Path) -> Path:
    """The certificate of the authority in ``folder``; it is made if need be."""
    folder.mkdir(exist_ok=True)
    root = folder / "ca-cert.pem"
    if not root.exists():
        _openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=the lab",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign",
            "-keyout", str(folder / "ca-key.pem"), "-out", str(root),
        )  # fmt: skip
    return root


def _sign(
    folder: Path, name: str, role: str, key: Path, certificate: Path, addresses: str = ""
) -> None:
    """A key, and a certificate by which its owner may be a ``server`` or a ``client``."""
    request, extensions = folder / "request.pem", folder / "extensions"
    extensions.write_text(
        (f"subjectAltName={addresses}\n" if addresses else "")
        + f"keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage={role}Auth\n"
    )
    _openssl(
        "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
        "-keyout", str(key), "-out", str(request),
    )  # fmt: skip
    _openssl(
        "x509", "-req", "-in", str(request), "-CA", str(folder / "ca-cert.pem"),
        "-CAkey", str(folder / "ca-key.pem"), "-CAcreateserial", "-days", "2",
        "-extfile", str(extensions), "-out", str(certificate),
    )  # fmt: skip


def listen(hosts: Mapping[str, LibvirtHost], folder: Path) -> None:
    """Let the hosts' daemons serve ``qemu+tls://`` by certificates of the authority in ``folder``.

    They are started anew; their guests run on.
    """
    certify(hosts, folder)
    places = {"key_file": "server-key", "cert_file": "server-cert", "ca_file": "ca-cert"}
    lines = "".join(f'{key} = "/etc/pki/qemu/{name}.pem"\n' for key, name in places.items())
    for host in hosts.values():
        settings = host.folder / "etc/libvirtd.conf"
        text = settings.read_text(encoding="utf-8")
        if lines not in text:
            settings.write_text(text.replace("listen_tls = 0", "listen_tls = 1") + lines)
        host.kill_daemon(signal.SIGTERM)
        host.start_daemon()


def client(folder: Path, place: Path) -> Path:
    """A folder for ``?pkipath=`` of an address: a client of the authority in ``folder``."""
    place.mkdir(exist_ok=True)
    (place / "cacert.pem").write_bytes(_authority(folder).read_bytes())
    _sign(folder, "a client", "client", place / "clientkey.pem", place / "clientcert.pem")
    return place


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
