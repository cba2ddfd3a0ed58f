"""CPUs as operators name them.

A model of the installed QEMU, a file, a libvirt URI (what guests can be shown there), or ``here``:
this machine.
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
    """Whether a name is a libvirt URI, as operators write them (``qemu+ssh://host/system``)."""
    return "://" in name and name.partition("://")[0].split("+")[0].isalpha()


def at_uri(uri: str) -> CpuModel:
    """What guests can be shown by libvirt's host at a URI."""
    from isthmus.hypervisor.libvirt.inventory import cpu_at

    return cpu_at(uri)


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
