"""Reading a dump of any known format, recognised by its content.

A document that fits no format, or fits one and is broken, gives an error that says which.
"""

from pathlib import Path

from isthmus.cpu.decode import decode
from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.cpuinfo import is_cpuinfo, read_cpuinfo
from isthmus.cpu.readers.firecracker import is_firecracker, read_firecracker
from isthmus.cpu.readers.libvirt import is_cpudata, read_cpudata
from isthmus.cpu.readers.qemu import expansion, first_document, model_from_properties
from isthmus.cpu.readers.raw import is_raw, read_raw
from isthmus.errors import InputError
from isthmus.values import from_json, read_bytes


def read_cpu(path: Path) -> CpuModel:
    """The CPU of a file of any known format; of several CPUs in a dump, the first.

    :raises InputError: unreadable, of no known format, or broken.
    """
    return recognise(read_bytes(path), name=path.stem, where=str(path))


def recognise(data: bytes, *, name: str, where: str) -> CpuModel:
    """The CPU of a document; see :func:`read_cpu`."""
    start = data.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":
        return _json(data, name, where)
    if start == b"<" and is_cpudata(data):
        return read_cpudata(data, name=name, where=where)
    text = data.decode("utf-8", "replace")
    if is_raw(text):
        return decode(read_raw(text, where=where)[0].leaves, name=name, source=where)
    if is_cpuinfo(text):
        return read_cpuinfo(text, name=name, where=where)
    raise InputError(
        f"{where}: no known format of a CPU dump",
        remedy="name a CPUID dump (cpuid -r, InstLatx64, libcpuid), a /proc/cpuinfo, a libvirt "
        "cpudata, a Firecracker fingerprint, QEMU's expansion or a CPU model of Isthmus",
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
    return from_json(data, CpuModel, where=where)
