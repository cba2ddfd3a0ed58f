"""Connections to libvirt's daemons, through libvirt's own binding for Python.

The binding is an optional part: without it everything else of Isthmus works.  libvirt's calls wait
for the daemon, so each runs in a thread of its own; a connection may be used from several threads
at once (libvirt: docs/architecture.rst).  Keep-alive messages tell within half a minute that a
daemon cannot be reached any more, where TCP would wait for a quarter of an hour.
"""

import asyncio
import contextlib
import importlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from isthmus.errors import EnvironmentLackError, HypervisorError, InputError

KEEPALIVE_S = 5
KEEPALIVE_COUNT = 5

R = TypeVar("R")
_registered = threading.Event()
_registering = threading.Lock()


class LibvirtError(HypervisorError):
    """libvirt refused a call; ``code`` is its VIR_ERR_ number (libvirt/virterror.h)."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message, remedy=None)
        self.code = code


class DaemonGoneError(LibvirtError):
    """The daemon does not answer, or its connection was lost: nothing is known of its guests."""


def binding() -> Any:
    """The module ``libvirt``.

    :raises EnvironmentLackError: it is not installed.
    """
    try:
        return importlib.import_module("libvirt")
    except ImportError as error:
        raise EnvironmentLackError(
            f"libvirt's binding for Python is not installed ({error})",
            remedy="script/setup --libvirt brings it"
            " (or: pip install -r requirements-libvirt.lock, with libvirt-dev and gcc)",
        ) from error


def qemu_binding() -> Any:
    """The module ``libvirt_qemu``: what the QEMU driver has beyond the common interface."""
    binding()
    return importlib.import_module("libvirt_qemu")


class Connection:
    """An open connection to one daemon."""

    def __init__(self, uri: str, handle: Any) -> None:
        self.uri = uri
        self.handle = handle

    async def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run one of libvirt's calls in a thread; see :func:`call`."""
        return await call(function, *arguments)

    async def domain(self, name: str) -> Any:
        """The domain of that name or UUID.

        :raises InputError: there is none.
        """
        found = await self.find(name)
        if found is None:
            raise InputError(
                f"{name}: {self.uri} has no guest of that name",
                remedy=f"virsh -c '{self.uri}' list --all",
            )
        return found

    async def find(self, name: str) -> Any | None:
        """The domain of that UUID or name, or None; raises :class:`DaemonGoneError`."""
        libvirt = binding()
        for look in (self.handle.lookupByUUIDString, self.handle.lookupByName):
            try:
                return await call(look, name)
            except LibvirtError as error:
                if error.code not in {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG}:
                    raise
        return None

    async def close(self) -> None:
        """Close the connection; one that is broken already is no error."""
        with contextlib.suppress(HypervisorError):
            await call(self.handle.close)


async def open_connection(uri: str) -> Connection:
    """Connect to the daemon at ``uri``.

    :raises EnvironmentLackError: the binding is missing.
    :raises DaemonGoneError: nobody answers there.
    """
    libvirt = binding()
    _register(libvirt)
    try:
        handle = await call(libvirt.open, uri)
    except LibvirtError as error:
        raise DaemonGoneError(f"{uri}: {error.message}", error.code) from error
    # A driver inside this very process (test://) has no such messages.
    with contextlib.suppress(LibvirtError):
        await call(handle.setKeepAlive, KEEPALIVE_S, KEEPALIVE_COUNT)
    return Connection(uri, handle)


@contextlib.asynccontextmanager
async def session(uri: str) -> AsyncIterator[Connection]:
    """Connect for the length of a ``with`` block."""
    connection = await open_connection(uri)
    try:
        yield connection
    finally:
        await connection.close()


async def call(function: Callable[..., R], *arguments: Any) -> R:
    """Run one of libvirt's calls in a thread.

    A call cannot be taken back: whoever cancels this gets its answer thrown away, not undone.

    :raises DaemonGoneError: the connection is lost.
    :raises LibvirtError: libvirt refused.
    """
    libvirt = binding()
    try:
        return await asyncio.to_thread(function, *arguments)
    except libvirt.libvirtError as error:
        raise translated(error) from error


def translated(error: Any) -> LibvirtError:
    """Libvirt's exception as one of ours."""
    libvirt = binding()
    text = " ".join(str(error).split()) or "libvirt gives no reason"
    code = error.get_error_code() or 0
    gone = {
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_SYSTEM_ERROR,
    }
    if error.get_error_domain() == libvirt.VIR_FROM_RPC or (
        code in gone and error.get_error_domain() in {libvirt.VIR_FROM_REMOTE, libvirt.VIR_FROM_RPC}
    ):
        return DaemonGoneError(text, code)
    return LibvirtError(text, code)


def _register(libvirt: Any) -> None:
    """Give libvirt an event loop, once in a process: events and keep-alive need one."""
    with _registering:
        if _registered.is_set():
            return
        # Errors are raised; libvirt would print them as well.
        libvirt.registerErrorHandler(lambda *_: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def turn() -> None:
            while True:
                with contextlib.suppress(libvirt.libvirtError):
                    libvirt.virEventRunDefaultImpl()

        threading.Thread(target=turn, name="libvirt events", daemon=True).start()
        _registered.set()
