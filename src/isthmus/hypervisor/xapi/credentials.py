"""Where the password of a pool comes from: a file, the environment, or netrc; never an argument.

In this order: the file that the address names (``password-file=``), the file that
``ISTHMUS_XAPI_PASSWORD_FILE`` names, the variable ``ISTHMUS_XAPI_PASSWORD``, and the netrc file
(``NETRC``, else ``~/.netrc``) by the address' host.
"""

import netrc
import stat
from collections.abc import Mapping
from pathlib import Path

from isthmus.errors import InputError
from isthmus.hypervisor.xapi.address import Address

PASSWORD = "ISTHMUS_XAPI_PASSWORD"  # noqa: S105 (the name of a variable)
PASSWORD_FILE = "ISTHMUS_XAPI_PASSWORD_FILE"  # noqa: S105
CACERT = "ISTHMUS_XAPI_CACERT"
DEFAULT_USER = "root"
_MAX_BYTES = 4096


class Login:
    """A user and a password; shown anywhere, the password is a dot."""

    __slots__ = ("password", "user")

    def __init__(self, user: str, password: str) -> None:
        self.user = user
        self.password = password

    def __repr__(self) -> str:
        return f"Login({self.user!r}, •)"


def login_for(address: Address, environment: Mapping[str, str]) -> Login:
    """The user and password for ``address``.

    :raises InputError: none is given, or a file of passwords can be read by others.
    """
    user = address.user or DEFAULT_USER
    named = address.password_file or _path(environment.get(PASSWORD_FILE))
    if named is not None:
        return Login(user, _from_file(named))
    if password := environment.get(PASSWORD):
        return Login(user, password)
    if found := _from_netrc(address, _path(environment.get("NETRC"))):
        return found
    raise InputError(
        f"xapi://{address.host}: no password for {user}",
        remedy=f"set {PASSWORD} or {PASSWORD_FILE}, write password-file=FILE behind the address,"
        f" or a line for {address.host} in ~/.netrc",
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _private(path: Path) -> None:
    """Refuse a file of passwords that others can read."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(f"{path}: others can read this password", remedy=f"chmod 600 {path}")


def _from_file(path: Path) -> str:
    try:
        _private(path)
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        password = data.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", remedy="name a readable file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8", remedy="write the password in UTF-8") from error
    if not password or len(data) > _MAX_BYTES or "\n" in password:
        raise InputError(f"{path}: not one line with a password", remedy="write the password alone")
    return password


def _from_netrc(address: Address, named: Path | None) -> Login | None:
    """What netrc has for this host, and for this user where the address names one."""
    try:
        path = named or Path.home() / ".netrc"
    except RuntimeError:  # this user has no home
        return None
    if named is None and not path.exists():
        return None
    try:
        _private(path)
        entry = netrc.netrc(path).authenticators(address.host)
    except netrc.NetrcParseError as error:
        # Its message may quote the file.
        raise InputError(f"{path}: line {error.lineno} is no netrc", remedy="mend it") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", remedy="name a readable file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8", remedy="write it in UTF-8") from error
    if entry is None or not entry[2] or (address.user and entry[0] != address.user):
        return None
    return Login(entry[0] or DEFAULT_USER, entry[2])
