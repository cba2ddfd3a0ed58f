"""Just enough of qcow2 to make an image, read it, and find damage (QEMU: docs/interop/qcow2.txt).

Version 2, clusters of 64 KiB, one refcount block, so an image of some hundred MiB at most; no
snapshots, no backing file, no compression.
"""

import struct
from collections import Counter
from pathlib import Path

CLUSTER = 1 << 16
_HEADER = ">4sIQIIQIIQQIIQ"
_TABLE = CLUSTER // 8
_OFFSET = (1 << 56) - (1 << 9)
_COPIED = 1 << 63


def make(path: Path, size: int, content: bytes = b"") -> None:
    """Write an image of ``size`` bytes that begins with ``content``; the rest is not allocated.

    Its clusters: header, refcount table, refcount block, L1 table, L2 tables, content.
    """
    assert size % CLUSTER == 0 and len(content) % CLUSTER == 0
    tables = -(-size // (CLUSTER * _TABLE))
    used = 4 + tables + len(content) // CLUSTER
    header = struct.pack(
        _HEADER, b"QFI\xfb", 2, 0, 0, 16, size, 0, tables, 3 * CLUSTER, CLUSTER, 1, 0, 0
    )
    refcounts = struct.pack(f">{used}H", *[1] * used)
    first = [(4 + n) * CLUSTER | _COPIED for n in range(tables)]
    second = [(4 + tables + n) * CLUSTER | _COPIED for n in range(len(content) // CLUSTER)]
    parts = [
        header,
        struct.pack(">Q", 2 * CLUSTER),
        refcounts,
        struct.pack(f">{tables}Q", *first),
        struct.pack(f">{len(second)}Q", *second).ljust(tables * CLUSTER, b"\0"),
    ]
    data = b"".join(part + b"\0" * (-len(part) % CLUSTER) for part in parts)
    path.write_bytes(data + content)


def read(path: Path) -> bytes:
    """The whole disk.

    :raises AssertionError: the image is damaged: a cluster is used twice, or is not counted.
    """
    image = path.read_bytes()
    magic, version, backing, _, bits, size, crypt, tables, l1, refcounts, _, snapshots, _ = (
        struct.unpack_from(_HEADER, image)
    )
    assert (magic, version, backing, bits, crypt, snapshots) == (b"QFI\xfb", 2, 0, 16, 0, 0)
    (block,) = struct.unpack_from(">Q", image, refcounts)
    seen = Counter([0, l1, refcounts, block])
    disk = bytearray(size)
    for number, first in enumerate(struct.unpack_from(f">{tables}Q", image, l1)):
        if table := first & _OFFSET:
            seen[table] += 1
            for entry, second in enumerate(struct.unpack_from(f">{_TABLE}Q", image, table)):
                if place := second & _OFFSET:
                    seen[place] += 1
                    at = (number * _TABLE + entry) * CLUSTER
                    disk[at : at + CLUSTER] = image[place : place + CLUSTER].ljust(CLUSTER, b"\0")
    for place, times in seen.items():
        (counted,) = struct.unpack_from(">H", image, block + 2 * (place // CLUSTER))
        assert (times, counted) == (1, 1), f"the cluster at {place:#x}: {times}, {counted}"
    return bytes(disk)
