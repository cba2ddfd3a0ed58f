"""XAPI's wire for tests: XML-RPC over TLS on loopback, in the documented envelope, with faults.

Format: xen-api ``doc/content/xen-api/wire-protocol.md``.  An ``int`` is a text of digits, a
``datetime`` an ISO 8601 element, ``void`` an empty text; each answer has ``Status``, and ``Value``
or ``ErrorDescription``.  A member of a pool answers HOST_IS_SLAVE to a login.
"""

import contextlib
import datetime as dt
import hashlib
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xapi_calls import CALLS, check, implicit
from xapi_pool import Pool, RefusedError


class Fault:
    """What goes wrong with the next ``times`` calls of ``method``.

    ``how``: ``cut`` (nothing is done, the connection closes), ``cut-after`` (it is done, the
    connection closes), ``torn`` (it closes in the middle of the answer), ``expire`` (the session
    is said to have ended), ``http`` (500 in HTTP's words), ``raw`` (``body`` instead of an
    answer), ``fail`` (``details``), ``stall`` (silence for ``seconds``).
    """

    def __init__(
        self, method: str, how: str, *, times: int = 1, body: bytes = b"",
        details: tuple[str, ...] = (), seconds: float = 0.0,
    ) -> None:  # fmt: skip
        self.method = method
        self.how = how
        self.times = times
        self.body = body
        self.details = details
        self.seconds = seconds


class Certificates:
    """An authority, and a server's certificate for loopback that it has signed."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl to make certificates with")
        self.authority = folder / "authority.pem"
        self.server = folder / "server.pem"
        key, request, names = folder / "ca.key", folder / "server.csr", folder / "names"
        names.write_text("subjectAltName=IP:127.0.0.1,IP:127.0.0.2\n")
        authority = f"req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=tests -keyout {key}"
        server = f"req -newkey rsa:2048 -nodes -subj /CN=pool -keyout {folder / 'server.key'}"
        signed = f"x509 -req -days 30 -in {request} -CA {self.authority} -CAkey {key}"
        for command in (
            f"{authority} -out {self.authority}",
            f"{server} -out {request}",
            f"{signed} -CAcreateserial -extfile {names} -out {folder / 'server.crt'}",
        ):
            subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
        certificate = (folder / "server.crt").read_text()
        self.server.write_text((folder / "server.key").read_text() + certificate)
        der = ssl.PEM_cert_to_DER_cert(certificate)
        self.fingerprint = hashlib.sha256(der).hexdigest()


class XapiServer:
    """One host that answers for its pool; ``coordinator`` is named by one that is a member only."""

    def __init__(
        self, pool: Pool, certificates: Certificates, *, at: tuple[str, int] = ("127.0.0.1", 0),
        coordinator: str = "",
    ) -> None:  # fmt: skip
        self.pool = pool
        self.coordinator = coordinator
        self.faults: list[Fault] = []
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.connections = 0
        self.on_call: Callable[[str], None] = lambda _: None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.server)
        outer = self

        class Handler(_Handler):
            server_of_pool = outer

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, Any]:
                plain, where = super().get_request()
                outer.connections += 1
                plain.settimeout(30)
                tls = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                return tls, where

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is no matter."""

        self._server = Server(at, Handler)
        self.host, self.port = at[0], self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def address(self, target: str = "", **query: str) -> str:
        """The address as an operator writes it."""
        text = "&".join(f"{key.replace('_', '-')}={value}" for key, value in query.items())
        return f"xapi://root@{self.host}:{self.port}/{target}{'?' + text if text else ''}"

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    def fault(self, method: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and fault.method in {method, "*"}:
                fault.times -= 1
                return fault
        return None

    def answer(self, method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
        try:
            return {"Status": "Success", "Value": wire(self._do(method, arguments))}
        except RefusedError as refused:
            return {"Status": "Failure", "ErrorDescription": refused.details}

    def _do(self, method: str, arguments: tuple[Any, ...]) -> Any:
        pool = self.pool
        if method == "session.login_with_password":
            if self.coordinator:
                raise RefusedError("HOST_IS_SLAVE", self.coordinator)
            if arguments[:2] != ("root", pool.password):
                raise RefusedError(
                    "SESSION_AUTHENTICATION_FAILED", arguments[0], "Authentication failure"
                )
            session = f"OpaqueRef:session-{time.monotonic_ns()}"
            pool.sessions.add(session)
            return session
        session, *rest = arguments
        if session not in pool.sessions:
            raise RefusedError("SESSION_INVALID", str(session))
        if method == "session.logout":
            pool.sessions.discard(session)
            return ""
        if method not in CALLS:
            with pool.world.lock:
                return implicit(pool, method, tuple(rest))
        check(pool, method, tuple(rest))
        pool.caller.session = session
        return CALLS[method][1](pool, *rest)


class _Handler(http.server.BaseHTTPRequestHandler):
    server_of_pool: XapiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        server = self.server_of_pool
        body = self.rfile.read(int(self.headers["content-length"]))
        arguments, method = xmlrpc.client.loads(body)
        assert method is not None
        server.calls.append((method, arguments))
        server.on_call(method)
        fault = server.fault(method)
        how = fault.how if fault else ""
        if fault and how == "stall":
            time.sleep(fault.seconds)
        if how == "cut":
            return self._cut()
        if how == "expire":
            answer: dict[str, Any] = {
                "Status": "Failure", "ErrorDescription": ["SESSION_INVALID", "OpaqueRef:old"],
            }  # fmt: skip
        elif fault and how == "fail":
            answer = {"Status": "Failure", "ErrorDescription": list(fault.details)}
        else:
            answer = server.answer(method, arguments)
        if how == "cut-after":
            return self._cut()
        self._reply(answer, fault)
        return None

    def _reply(self, answer: dict[str, Any], fault: Fault | None) -> None:
        how = fault.how if fault else ""
        data = xmlrpc.client.dumps((answer,), methodresponse=True).encode()
        if fault and how == "raw":
            data = fault.body
        self.send_response(500 if how == "http" else 200)
        self.send_header("content-type", "text/xml")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if how == "torn":
            self.wfile.write(data[: len(data) // 2])
            return self._cut()
        self.wfile.write(data)
        return None

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def wire(value: Any) -> Any:
    """A value as XAPI puts it on the wire."""
    if isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dt.datetime):
        return xmlrpc.client.DateTime(value.strftime("%Y%m%dT%H:%M:%SZ"))
    if isinstance(value, dict):
        return {str(key): wire(each) for key, each in value.items()}
    return [wire(each) for each in value]
