"""How an operator names a XenServer or XCP-ng pool: ``xapi://[USER@]ADDRESS[:PORT][/HOST]``.

ADDRESS is any host of the pool (calls go to its coordinator, which a member names), HOST the name,
UUID or address of the host that is meant; without it the host at ADDRESS is meant.  The query
says

* whom to trust: ``cacert=FILE`` or ``fingerprint=SHA256`` (several are allowed);
* where the password is: ``password-file=FILE``.  A password never stands in an address, since
  command lines and journals can be read by others;
* of a destination, where a guest's disks go: ``sr=NAME``, and which of its networks becomes which:
  ``network=OLD=NEW`` (several are allowed), both by name or UUID.
"""

import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from isthmus.errors import InputError
from isthmus.values import Value

SCHEME = "xapi"
DEFAULT_PORT = 443
_FORM = "xapi://[USER@]ADDRESS[:PORT][/HOST]"
_PASSWORD_FILE = "password-file"  # noqa: S105 (the name of a key)
_KEYS = frozenset({"cacert", "fingerprint", _PASSWORD_FILE, "sr", "network"})
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HOST = re.compile(r"[0-9A-Za-z.:_-]{1,253}")


class Address(Value, frozen=True):
    """A pool, the host of it that is meant, whom to trust, and where the password is.

    ``user`` and ``target`` are empty where the operator named none; ``fingerprints`` are SHA-256
    of certificates, 64 digits in lower case.  ``sr`` and ``networks`` are of a destination.
    """

    host: str
    port: int = DEFAULT_PORT
    user: str = ""
    target: str = ""
    cacert: Path | None = None
    fingerprints: tuple[str, ...] = ()
    password_file: Path | None = None
    sr: str = ""
    networks: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """The address as it is written; read again it is the same."""
        query = [("cacert", str(self.cacert))] if self.cacert else []
        query += [("fingerprint", digest) for digest in self.fingerprints]
        query += [("password-file", str(self.password_file))] if self.password_file else []
        query += [("sr", self.sr)] if self.sr else []
        query += [("network", f"{old}={new}") for old, new in self.networks]
        return (
            f"{SCHEME}://{quote(self.user) + '@' if self.user else ''}{self.authority}"
            f"{'/' + quote(self.target, safe='') if self.target else ''}"
            f"{'?' + urlencode(query, safe='/') if query else ''}"
        )

    @property
    def authority(self) -> str:
        """Host and port as a URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORT else f"{host}:{self.port}"


def parse(text: str) -> Address:
    """Read an address.

    :raises InputError: it is none, it holds a password, or a part of it is not known.
    """
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise InputError(f"{_shown(text)}: {error}", remedy=f"write {_FORM}") from error
    if parts.scheme != SCHEME or not host or not _HOST.fullmatch(host) or parts.fragment:
        raise InputError(f"{_shown(text)}: no address of a pool", remedy=f"write {_FORM}")
    if parts.password is not None:
        raise InputError(
            f"xapi://{host}: a password stands in the address, where others can read it",
            remedy="change it, and give it by ?password-file=FILE, ISTHMUS_XAPI_PASSWORD or netrc",
        )
    query = parse_qsl(parts.query, keep_blank_values=True)
    for key, value in query:
        if key not in _KEYS or not value:
            raise InputError(
                f"xapi://{host}: {key[:40]!r} is not known or is empty",
                remedy=f"known are {', '.join(sorted(_KEYS))}",
            )
    once = dict(query)
    return Address(
        host=host,
        port=port or DEFAULT_PORT,
        user=unquote(parts.username or ""),
        target=unquote(parts.path.strip("/")),
        cacert=Path(once["cacert"]).absolute() if "cacert" in once else None,
        fingerprints=tuple(_fingerprint(text, host) for key, text in query if key == "fingerprint"),
        password_file=Path(once[_PASSWORD_FILE]).absolute() if _PASSWORD_FILE in once else None,
        sr=once.get("sr", ""),
        networks=tuple(_pair(text, host) for key, text in query if key == "network"),
    )


def _pair(text: str, host: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old or not new:
        raise InputError(
            f"xapi://{host}: network={text[:60]!r} names no two networks",
            remedy="write network=OLD=NEW",
        )
    return old, new


def _fingerprint(text: str, host: str) -> str:
    digest = text.lower().removeprefix("sha256:").replace(":", "")
    if not _DIGEST.fullmatch(digest):
        raise InputError(
            f"xapi://{host}: a fingerprint is not a SHA-256 of 64 hexadecimal digits",
            remedy="on the host: openssl x509 -noout -fingerprint -sha256"
            " -in /etc/xensource/xapi-ssl.pem",
        )
    return digest


def _shown(text: str) -> str:
    """The text for a message, without what may be a password."""
    return re.sub(r"//[^/@]*@", "//…@", text)[:120]
