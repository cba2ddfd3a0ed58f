"""A session with the coordinator of a XenServer or XCP-ng pool, through the XenAPI package.

Two kinds of calls: a question (:meth:`Connection.ask`) may be asked again when its answer got
lost; an order (:meth:`Connection.order`) is given once, and when its answer is lost, what became of
it must be asked.  A session that has run out is renewed by the package: a call with an invalid
session has not been carried out (xen-api ``doc/content/xen-api/usage.md``, "Authentication and
session handling"; it also asks to log out, to name an originator, and to follow HOST_IS_SLAVE).

Calls block, and one waits for the other: a thread that was left alone with its call does no harm.
"""

import http.client
import os
import ssl
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self, TypeVar
from xml.parsers.expat import ExpatError

import msgspec
from XenAPI import XenAPI

from isthmus import __version__
from isthmus.errors import HypervisorError, InputError, IsthmusError
from isthmus.hypervisor.xapi.address import Address
from isthmus.hypervisor.xapi.credentials import CACERT, Login, login_for
from isthmus.hypervisor.xapi.failures import (
    AUTHENTICATION,
    HOST_IS_SLAVE,
    XapiFailureError,
    XapiGoneError,
    XapiNonsenseError,
    printable,
)
from isthmus.hypervisor.xapi.transport import Transport, UntrustedError, trust

API_VERSION = "2.21"
"""What a client says it speaks; XAPI does not look at it (``ocaml/xapi/xapi_session.ml``)."""
ORIGINATOR = f"isthmus/{__version__}"
PATIENCE_S = 120.0
"""How long a question is repeated while nobody answers: a restarting XAPI takes about a minute."""
_MAX_FOLLOWED = 3
_MAX_NAME = 253

T = TypeVar("T")


class Connection:
    """One logged-in session; :meth:`close` logs out."""

    def __init__(
        self, address: Address, login: Login, context: ssl.SSLContext, patience_s: float
    ) -> None:
        self.address = address
        self.patience_s = patience_s
        self._login = login
        self._context = context
        self._session = self._fresh(address)
        self._turn = threading.RLock()

    @classmethod
    def open(
        cls,
        address: Address,
        environment: Mapping[str, str] | None = None,
        *,
        patience_s: float | None = None,
    ) -> Self:
        """Log in to the pool's coordinator; a member of the pool names it.

        :param environment: the process's own by default.
        :param patience_s: how long questions are repeated; :data:`PATIENCE_S` by default.
        :raises InputError: no password is given, or the pool does not take it.
        :raises HypervisorError: nobody answers, or the server is not to be trusted.
        """
        environment = os.environ if environment is None else environment
        login = login_for(address, environment)
        if address.cacert is None and not address.fingerprints and environment.get(CACERT):
            address = msgspec.structs.replace(address, cacert=environment[CACERT])
        patience_s = PATIENCE_S if patience_s is None else patience_s
        connection = cls(address, login, trust(address.cacert, address.fingerprints), patience_s)
        connection._repeat(connection._log_in)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """The answer to a question; it is asked again while its answers get lost.

        :raises XapiFailureError: XAPI refuses it.
        :raises XapiGoneError: nobody answered for as long as the connection has patience.
        :raises XapiNonsenseError: the answer is none.
        """
        return self._repeat(lambda: self._call(method, *arguments))

    def ask_for(self, kind: type[T], method: str, *arguments: Any) -> T:
        """As :meth:`ask`, with an answer of the type ``kind``.

        :raises XapiNonsenseError: it is of another type.
        """
        return typed(self.ask(method, *arguments), kind, method)

    def order(self, method: str, *arguments: Any) -> Any:
        """Give an order, once.

        :raises XapiFailureError: XAPI refuses it.
        :raises XapiGoneError: no answer came; whether it is carried out has to be asked.
        """
        return self._call(method, *arguments)

    def revoke(self, token: str) -> None:
        """End a session that the pool has made for somebody else (``host.migrate_receive``)."""
        with suppress(IsthmusError):
            self._guarded(lambda: self._session.session.logout(token))

    def close(self) -> None:
        """Log out; whether or not that succeeds, nothing is left open here."""
        with suppress(IsthmusError):
            if self._session.handle:
                self._guarded(self._session.logout)
        self.leave()

    def leave(self) -> None:
        """Go without logging out: what still works in the name of this session needs it.

        A move does: the hosts let each other in by the session that ordered it (xen-api
        ``ocaml/xapi/xapi_vm_migrate.ml``, ``xenops_url``).  XAPI ends it after a day.
        """
        self._session.transport.close()

    def _fresh(self, address: Address) -> Any:
        """A session that has not logged in yet."""
        return XenAPI.Session(
            f"https://{address.authority}/",
            transport=Transport(self._context, address.fingerprints),
        )

    def _log_in(self) -> None:
        self._guarded(
            lambda: self._session.login_with_password(
                self._login.user, self._login.password, API_VERSION, ORIGINATOR
            )
        )

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._guarded(lambda: self._session.xenapi_request(method, arguments))

    def _repeat(self, question: Callable[[], Any]) -> Any:
        """Ask until there is an answer, following the coordinator to where it has gone."""
        deadline = time.monotonic() + self.patience_s
        pause_s = 0.1
        followed = 0
        while True:
            try:
                return question()
            except XapiFailureError as failure:
                followed += 1
                if failure.code != HOST_IS_SLAVE or followed > _MAX_FOLLOWED:
                    raise
                self._follow(failure)
            except XapiGoneError:
                if time.monotonic() + pause_s > deadline:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)

    def _follow(self, failure: XapiFailureError) -> None:
        """Go to the coordinator that a member has named, and log in there."""
        named = failure.parameters[0] if failure.parameters else ""
        if not named or len(named) > _MAX_NAME or not set(named) <= _HOST_SIGNS:
            raise XapiNonsenseError(f"{self._where}: a member that names no coordinator")
        self._session.transport.close()
        self.address = msgspec.structs.replace(self.address, host=named)
        self._session = self._fresh(self.address)
        self._log_in()

    @property
    def _where(self) -> str:
        return f"xapi://{self.address.authority}"

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Whatever a call can end in, as an error of ours."""
        secrets = (self._login.password, self._session.handle or "")
        try:
            with self._turn:
                return call()
        except XenAPI.Failure as failure:
            details = failure.details if isinstance(failure.details, list) else [failure.details]
            error = XapiFailureError(details, secrets=secrets)
            if error.code == AUTHENTICATION:
                raise InputError(
                    f"{self._where}: the password of {self._login.user} is not taken",
                    remedy="docs/xenserver.md tells where it is looked for",
                ) from None
            raise error from None
        except (UntrustedError, ssl.SSLCertVerificationError) as error:
            reason = getattr(error, "verify_message", "") or str(error.args[-1])
            raise HypervisorError(
                f"{self._where}: not trusted: {printable(reason)}",
                remedy="give its authority by ?cacert=FILE,"
                " or compare and pin it by ?fingerprint=SHA256",
            ) from None
        except xmlrpc.client.ProtocolError as error:
            # XAPI answers so while it starts and stops.
            raise XapiGoneError(
                f"{self._where}: HTTP {error.errcode} {printable(error.errmsg)}"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise XapiGoneError(
                f"{self._where}: no answer: {printable(reason, secrets)}",
                remedy="see whether the pool's coordinator is up and can be reached",
            ) from None
        except (
            xmlrpc.client.Error, ExpatError, TypeError, ValueError, LookupError, AttributeError,
            RecursionError, OverflowError,
        ) as error:  # fmt: skip
            raise XapiNonsenseError(
                f"{self._where}: not an answer of XAPI: {printable(str(error), secrets)}",
                remedy="see whether this is a pool's coordinator",
            ) from None


_HOST_SIGNS = frozenset("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.:_-")


def typed(value: Any, kind: type[T], what: str) -> T:
    """``value`` as XAPI's documents say that ``what`` is.

    An ``int`` comes as a text of digits, a ``datetime`` as an object of ``xmlrpc.client``
    (xen-api ``doc/content/xen-api/wire-protocol.md``).

    :raises XapiNonsenseError: it is something else.
    """
    try:
        return msgspec.convert(value, kind, strict=False)
    except (msgspec.ValidationError, RecursionError, ValueError, TypeError) as error:
        raise XapiNonsenseError(
            f"{printable(what)}: not of the documented type: {printable(str(error))}",
            remedy="see whether this is a pool's coordinator; its version may be too old",
        ) from None
