"""What both daemons say of themselves before a move, as values: thin, for the pure preflight."""

from typing import Any

from isthmus.cpu.model import CpuModel
from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.connection import Connection, DaemonGoneError, LibvirtError, call
from isthmus.hypervisor.libvirt.host import LibvirtHost, read_host_documents
from isthmus.hypervisor.libvirt.relations import Move


async def host_at(connection: Connection, *, kind: str, arch: str, name: str) -> LibvirtHost:
    """The host of a connection, for domains of that type and architecture.

    :raises DaemonGoneError: the daemon does not answer.
    """
    handle = connection.handle
    capabilities = await call(handle.getCapabilities)
    try:
        shown = await call(handle.getDomainCapabilities, None, arch or None, None, kind or None, 0)
    except DaemonGoneError:
        raise
    except LibvirtError as error:  # a driver that has none
        host = read_host_documents(capabilities.encode(), None, name=name)
        return host.replace(unknown=(*host.unknown, error.message))
    return read_host_documents(capabilities.encode(), shown.encode(), name=name)


async def move_between(
    source: Connection, destination: Connection, domain: Any, *, copies_all: bool, tls: bool
) -> Move:
    """How a domain is to be moved, with what the daemons know of that."""
    return Move(
        copies_all=copies_all,
        tls=tls,
        snapshots=await call(domain.snapshotNum),
        libvirt_here=_version(await call(source.handle.getLibVersion)),
        libvirt_there=_version(await call(destination.handle.getLibVersion)),
    )


def offer_of(host: LibvirtHost) -> CpuModel:
    """What the host can show a guest.

    :raises InputError: its libvirt names no CPU that is known here.
    """
    if host.cpu is None:
        raise InputError(
            f"{host.name}: {host.unknown[0] if host.unknown else 'libvirt names no CPU'}",
            remedy="virsh domcapabilities there tells more",
        )
    return host.cpu


def _version(number: int) -> tuple[int, ...]:
    """Libvirt's number for a version: 1,000,000 · major + 1,000 · minor + release."""
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000
