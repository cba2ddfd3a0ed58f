"""The way of a call to XAPI: HTTPS that is verified, sent once, and limited in time and size.

``xmlrpc.client`` sends a request again when its connection was cut.  A cut does not tell whether
the server has begun, and a move must not be asked for twice; so nothing is sent again here.
"""

import hashlib
import http.client
import ssl
import time
import xmlrpc.client
from pathlib import Path
from typing import Any

from isthmus import __version__
from isthmus.errors import InputError

MAX_ANSWER_BYTES = 64 << 20
"""Largest answer that is read; the records of a thousand guests take some 10 MiB."""
ANSWER_S = 300.0
"""How long an answer may take as a whole; event.from answers within its own, shorter time."""
SILENCE_S = 60.0
"""How long the server may be silent."""


class UntrustedError(ssl.SSLError):
    """The server's certificate is not the pinned one."""


class TooLongError(ValueError):
    """The answer is longer, or takes longer, than any answer of XAPI."""


def trust(cacert: Path | None, fingerprints: tuple[str, ...]) -> ssl.SSLContext:
    """How the server is verified: by its pinned certificate, by ``cacert``, else by the machine's.

    :raises InputError: ``cacert`` holds no certificates.
    """
    if fingerprints:
        # The certificate itself is compared, before anything is sent: who signed it for which
        # name adds nothing.
        pinned = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        pinned.check_hostname = False
        pinned.verify_mode = ssl.CERT_NONE
        return pinned
    try:
        return ssl.create_default_context(cafile=str(cacert) if cacert else None)
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"{cacert}: {error.strerror or 'no certificates in it'}", remedy="name a file in PEM"
        ) from error


class _Connection(http.client.HTTPSConnection):
    """A connection whose certificate is compared with the pinned ones."""

    def __init__(self, host: str, context: ssl.SSLContext, fingerprints: tuple[str, ...]) -> None:
        super().__init__(host, context=context, timeout=SILENCE_S)
        self._fingerprints = fingerprints

    def connect(self) -> None:
        super().connect()
        if not self._fingerprints:
            return
        assert isinstance(self.sock, ssl.SSLSocket)
        certificate = self.sock.getpeercert(binary_form=True) or b""
        found = hashlib.sha256(certificate).hexdigest()
        if found not in self._fingerprints:
            self.close()
            raise UntrustedError(f"its certificate has the fingerprint {found}")


class Transport(xmlrpc.client.SafeTransport):
    """The transport that the XenAPI package is given."""

    user_agent = f"isthmus/{__version__}"
    accept_gzip_encoding = False

    def __init__(self, context: ssl.SSLContext, fingerprints: tuple[str, ...]) -> None:
        super().__init__(context=context)
        self._tls = context
        self._fingerprints = fingerprints

    def make_connection(self, host: Any) -> http.client.HTTPSConnection:
        """The connection to ``host``, kept between calls."""
        kept: Any = self._connection
        if kept and isinstance(kept[1], _Connection) and host == kept[0]:
            return kept[1]
        chost, self._extra_headers, _ = self.get_host_info(host)
        made = _Connection(chost, self._tls, self._fingerprints)
        self._connection = host, made
        return made

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:  # noqa: ARG002
        """Send once; after any trouble the next call makes a new connection."""
        try:
            return self.single_request(host, handler, request_body, verbose=False)
        except BaseException:
            self.close()
            raise

    def parse_response(self, response: Any) -> Any:
        """Read one answer, of limited size, in limited time, without entities of its own."""
        parser, unmarshaller = self.getparser()
        parser._parser.StartDoctypeDeclHandler = _no_doctype  # type: ignore[attr-defined]
        deadline = time.monotonic() + ANSWER_S
        left = MAX_ANSWER_BYTES
        while chunk := response.read1(1 << 16):
            left -= len(chunk)
            if left < 0 or time.monotonic() > deadline:
                raise TooLongError("the answer does not end")
            parser.feed(chunk)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        response.close()  # of the answer alone: the connection is kept for the next call
        parser.close()
        return unmarshaller.close()


def _no_doctype(*_: object) -> None:
    raise ValueError("an answer with a document type of its own")
