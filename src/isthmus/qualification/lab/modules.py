"""Kernel modules for a guest: which are needed, in which order they load.

The order comes from the modules themselves: the ``depends=`` entry of a module's ``.modinfo``
section names those it needs (Linux: include/linux/module.h, MODULE_INFO; scripts/mod/modpost.c).
A module that the kernel has built in is simply not there.
"""

import lzma
import shutil
import struct
import subprocess
from collections.abc import Mapping

from isthmus.errors import EnvironmentLackError, InputError

WANTED = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_net")
"""What the lab's devices need."""

MODULE_LIMIT = 16 << 20  # bytes; the largest virtio module is a tenth of a MiB


def decompress(name: str, data: bytes) -> bytes:
    """A module as the kernel takes it, from ``.ko``, ``.ko.xz`` or ``.ko.zst``.

    :raises InputError: damaged or unreasonably large.
    :raises EnvironmentLackError: it is packed with zstd, and that program is missing.
    """
    if name.endswith(".xz"):
        try:
            plain = lzma.LZMADecompressor().decompress(data, max_length=MODULE_LIMIT + 1)
        except lzma.LZMAError as error:
            raise InputError(
                f"{name}: damaged: {error}", remedy="fetch the kernel again"
            ) from error
    elif name.endswith(".zst"):
        if shutil.which("zstd") is None:
            raise EnvironmentLackError(
                f"{name}: packed with zstd", remedy="apt-get install zstd, or take another kernel"
            )
        done = subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=False)
        plain = done.stdout
    else:
        plain = data
    if not plain.startswith(b"\x7fELF") or len(plain) > MODULE_LIMIT:
        raise InputError(f"{name}: not a kernel module", remedy="fetch the kernel again")
    return plain


def depends(module: bytes) -> list[str]:
    """The names of the modules that this one needs."""
    for item in _section(module, b".modinfo").split(b"\0"):
        if item.startswith(b"depends="):
            names = item[8:].decode("ascii", errors="replace").split(",")
            return [name.replace("-", "_") for name in names if name]
    return []


def load_order(modules: Mapping[str, bytes], wanted: tuple[str, ...] = WANTED) -> list[str]:
    """The names of ``wanted`` and all they depend on, dependencies first.

    A name without a module is built into the kernel, or the device it drives will be missed.

    :raises InputError: modules depend on one another in a circle.
    """
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in order or name not in modules:
            return
        if name in above:
            raise InputError(f"kernel modules depend in a circle: {' '.join((*above, name))}")
        for below in depends(modules[name]):
            visit(below, (*above, name))
        order.append(name)

    for name in wanted:
        visit(name, ())
    return order


def _section(elf: bytes, wanted: bytes) -> bytes:
    """The content of a section of a 64-bit little-endian ELF file, empty if there is none."""
    try:
        offset, size, count, names = (
            *struct.unpack_from("<Q", elf, 0x28),
            *struct.unpack_from("<HHH", elf, 0x3A),
        )
        headers = [struct.unpack_from("<IIQQQQ", elf, offset + n * size) for n in range(count)]
        table = headers[names]
        strings = elf[table[4] : table[4] + table[5]]
        for header in headers:
            end = strings.index(b"\0", header[0])
            if strings[header[0] : end] == wanted:
                return elf[header[4] : header[4] + header[5]]
    except (struct.error, IndexError, ValueError):
        pass
    return b""
