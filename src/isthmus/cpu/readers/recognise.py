"""Reading a dump of any known format, recognised by its content.

A document that fits no format, or fits one and is broken, gives an error that says which.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isthmus.cpu.decode import decode
from isthmus.cpu.fingerprint import Fingerprint, cpu_of
from isthmus.cpu.model import CpuModel
from isthmus.cpu.probe import common
from isthmus.cpu.readers.cpuinfo import is_cpuinfo, read_cpuinfo
from isthmus.cpu.readers.firecracker import is_firecracker, read_firecracker
from isthmus.cpu.readers.libvirt import is_cpudata, read_cpudata
from isthmus.cpu.readers.libvirt_cpu import is_libvirt, read_libvirt
from isthmus.cpu.readers.qemu import expansion, first_document, model_from_properties
from isthmus.cpu.readers.raw import is_raw, read_raw
from isthmus.cpu.readers.vmware import is_vmware, read_vmware
from isthmus.cpu.readers.xen import is_xen, read_xen
from isthmus.errors import InputError
from isthmus.values import from_json, read_bytes


def read_cpu(path: Path) -> CpuModel:
    """The CPU of a file of any known format; of several CPUs in a dump, the first.

    :raises InputError: unreadable, of no known format, or broken.
    """
    return recognise(read_bytes(path), name=path.stem, where=str(path))


def read_host(path: Path) -> CpuModel:
    """The CPU of a host whose file this is: of unlike cores in a dump, what all of them have.

    :raises InputError: as :func:`read_cpu` does.
    """
    return recognise(read_bytes(path), name=path.stem, where=str(path), every=True)


def recognise(data: bytes, *, name: str, where: str, every: bool = False) -> CpuModel:
    """The CPU of a document; see :func:`read_cpu`.

    :param every: of a dump of several CPUs, take what all of them have.
    """
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start in {b"{", b"["}:
        return _json(data, name, where)
    if start == b"<" and is_cpudata(data):
        return read_cpudata(data, name=name, where=where)
    if start == b"<" and is_libvirt(data):
        return read_libvirt(data, name=name, where=where)
    text = data.decode("utf-8", "replace")
    if is_raw(text):
        cpus = read_raw(text, where=where)
        cores = [
            decode(cpu.leaves, name=name, source=where) for cpu in cpus[: None if every else 1]
        ]
        return common(cores)
    if is_xen(text):
        return read_xen(text, name=name, where=where)
    if is_cpuinfo(text):
        return read_cpuinfo(text, name=name, where=where)
    raise InputError(
        f"{where}: no known format of a CPU dump",
        remedy="name a CPUID dump (cpuid -r, InstLatx64, libcpuid), a /proc/cpuinfo, an XML of "
        "libvirt, the output of xen-cpuid -p or xl info, a vCenter host, a Firecracker "
        "fingerprint, QEMU's expansion, or a fingerprint or CPU model of Isthmus",
    )


def _json(data: bytes, name: str, where: str) -> CpuModel:
    try:
        document = first_document(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {error}", remedy="name a whole JSON document") from error
    if (props := expansion(document)) is not None:
        return model_from_properties(name, props, source=where)
    if is_firecracker(document):
        return read_firecracker(data, name=name, where=where)
    if _is_fingerprint(document):
        return cpu_of(from_json(data, Fingerprint, where=where), name, where)
    if is_vmware(document):
        return read_vmware(document, name=name, where=where)
    return from_json(data, CpuModel, where=where)


def _is_fingerprint(document: Any) -> bool:
    return isinstance(document, Mapping) and "fingerprint" in document and "cores" in document
