"""CPUs as operators name them.

A model of the installed QEMU, a file, ``here`` for this machine, or the address of a host: a
libvirt URI means what guests can be shown there; that of a Xen host what it gives its PV guests,
with ``#pvh`` behind it its PVH and HVM guests.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from isthmus.cpu.model import CpuModel
from isthmus.cpu.probe import this_machine
from isthmus.cpu.readers.recognise import read_host
from isthmus.errors import InputError

HERE = "here"
"""The name of this machine's own CPU."""


def is_uri(name: str) -> bool:
    """Whether a name is a host's address, as operators write them (``qemu+ssh://host/system``)."""
    return "://" in name and name.partition("://")[0].split("+")[0].isalpha()


def at_uri(uri: str) -> CpuModel:
    """What guests can be shown by the host at an address.

    :raises InputError: not an address, or no kind of guest that it runs.
    :raises HypervisorError: the host does not answer.
    """
    if uri.partition("://")[0].partition("+")[0] in {"xen", "xl"}:
        return _at_xen(uri)
    from isthmus.hypervisor.libvirt.inventory import cpu_at

    return cpu_at(uri)


def _at_xen(name: str) -> CpuModel:
    from isthmus.hypervisor.xen.host import read_host as read_xen_host
    from isthmus.hypervisor.xen.runner import runner_of

    address, _, kind = name.partition("#")
    host = asyncio.run(read_xen_host(runner_of(address)))
    offer = host.offers.get({"": "PV", "pv": "PV", "pvh": "HVM", "hvm": "HVM"}.get(kind, ""))
    if offer is None:
        raise InputError(f"{name}: runs no such guests", remedy="append #pv or #pvh, or nothing")
    return offer.replace(name=name)


def is_file(name: str) -> bool:
    """Whether a name means a file: it has a slash or a dot, or such a file exists."""
    if name == HERE or is_uri(name):
        return False
    return "/" in name or "." in name or Path(name).is_file()


def read_hosts(names: Sequence[str]) -> tuple[CpuModel, ...]:
    """The CPUs of these names, in their order; QEMU is asked only if one of them is its model.

    :raises InputError: a file that cannot be read, or no CPU model of QEMU has that name.
    :raises EnvironmentLackError: QEMU is needed and missing.
    """
    models = {name: read_host(Path(name)) for name in names if is_file(name)}
    models |= {name: at_uri(name) for name in names if is_uri(name)}
    if HERE in names:
        models[HERE] = this_machine().replace(name=HERE)
    wanted = [name for name in names if name not in models]
    if wanted:
        models |= _offered(wanted)
    return tuple(models[name] for name in names)


def _offered(names: Sequence[str]) -> dict[str, CpuModel]:
    from isthmus.hypervisor.qemu.binary import find_qemu
    from isthmus.hypervisor.qemu.engine import choose_accelerator
    from isthmus.hypervisor.qemu.models import read_cpus

    qemu = find_qemu()
    cpus = asyncio.run(read_cpus(qemu, choose_accelerator(qemu).accelerator, names))
    offered = {}
    for name in names:
        try:
            offered[name] = cpus.offered(name)
        except InputError as error:
            raise InputError(
                error.message, remedy=f"name a CPU model of QEMU, or the file of a dump (./{name})"
            ) from error
    return offered
