"""Which module moves a guest between two hosts: chosen by the scheme of their addresses.

Addresses are URIs as the platform's users write them: libvirt's own (``qemu:///system``,
``qemu+ssh://root@host/system``; libvirt: docs/uri.rst), ``xen:///`` and ``xen+ssh://`` for Xen
hosts without a daemon (``xl`` is the same), ``xapi://`` for pools of XenServer and XCP-ng.  What
stands before a ``+`` chooses the platform, what stands behind it is the platform's own affair.

A platform's module has the three functions of :class:`Platform`.  Each writes the journal of
:mod:`isthmus.migration.record` with ``Plan.platform`` set to its name in :data:`PLATFORMS`, so that
recovery after a crash finds it again.
"""

import importlib
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import urlsplit

from isthmus.errors import InputError
from isthmus.hypervisor.qemu.guests import GuestStore
from isthmus.migration.options import Observer, Options
from isthmus.migration.preflight import Preflight
from isthmus.migration.record import MigrationRecord
from isthmus.values import Value


class Request(Value, frozen=True):
    """What the operator asks for: the guest of that name on ``source``, to ``destination``.

    ``source`` and ``destination`` are URIs; ``accepted`` the rules whose findings the operator
    takes the risk of; ``force``: all of them.  ``peer`` is the destination's URI as the source
    reaches it, where that is another; ``link`` where the guest's data goes, as the platform writes
    it, empty for the platform's choice.  ``parallel``: connections of multifd, 0 for none;
    ``copy_storage``: the guest's disks are copied, too; ``tls``: the data is encrypted.
    """

    guest: str
    source: str
    destination: str
    options: Options
    accepted: tuple[str, ...] = ()
    force: bool = False
    peer: str = ""
    link: str = ""
    postcopy: bool = False
    parallel: int = 0
    copy_storage: bool = False
    tls: bool = False


class Platform(Protocol):
    """What a platform's module offers."""

    async def check(self, request: Request) -> Preflight:
        """All checks of the move; takes no step."""

    async def move(
        self, request: Request, store: GuestStore, observer: Observer
    ) -> MigrationRecord:
        """Move the guest, as :func:`isthmus.migration.engine.move`.

        :raises RefusedError: preflight found what could not work; nothing was touched.
        :raises RolledBackError: it failed and the guest runs on its source.
        :raises UndecidedError: the operator has to decide.
        """

    async def recover(
        self, path: Path, store: GuestStore, observer: Observer, use: str
    ) -> MigrationRecord:
        """Bring the migration of the journal at ``path`` to its end whose process was killed."""


PLATFORMS: dict[str, str] = {
    "libvirt": "isthmus.migration.libvirt",
    "xen": "isthmus.migration.xen",
    "xapi": "isthmus.migration.xapi",
}
"""The module of each platform, imported when it is used."""

TAKES: dict[str, frozenset[str]] = {
    "libvirt": frozenset(
        {
            "--peer", "--link", "--postcopy", "--parallel", "--copy-storage", "--tls", "--watch",
            "--sync-clock",
        }
    ),
    "xen": frozenset(),
    "xapi": frozenset(),
}  # fmt: skip
"""Which wishes, by the command's options, a platform has a way to fulfil: others are refused."""

SCHEMES: dict[str, str] = {
    "qemu": "libvirt",
    "xen": "xen",
    "xl": "xen",
    "xapi": "xapi",
}
"""Scheme, without what stands behind its ``+``, to platform."""


def platform_of(source: str, destination: str) -> str:
    """The platform that both addresses belong to.

    :raises InputError: an address that nobody knows, or two of different platforms.
    """
    names = {uri: _platform(uri) for uri in (source, destination)}
    if len(set(names.values())) > 1:
        raise InputError(
            "a guest cannot go from one platform to another: "
            + ", ".join(f"{uri} is {name}" for uri, name in names.items()),
            remedy="name two hosts of one platform",
        )
    return names[source]


def has_host(uri: str) -> bool:
    """Whether the address names a host, so that other hosts can reach it by it, too."""
    try:
        return bool(urlsplit(uri).hostname)
    except ValueError:
        return False


def load(platform: str) -> Platform:
    """The module of a platform of :data:`PLATFORMS`."""
    try:
        return cast("Platform", importlib.import_module(PLATFORMS[platform]))
    except KeyError:
        raise InputError(
            f"{platform}: no platform of that name", remedy="this record is of a newer Isthmus"
        ) from None


def _platform(uri: str) -> str:
    try:
        scheme = urlsplit(uri).scheme.partition("+")[0]
    except ValueError:
        scheme = ""
    if scheme not in SCHEMES:
        raise InputError(
            f"{uri}: not the address of a host",
            remedy="name one like qemu+ssh://root@host/system"
            f" (schemes: {', '.join(sorted(SCHEMES))})",
        )
    return SCHEMES[scheme]
