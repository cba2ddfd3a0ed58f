"""The body of HVM_CONTEXT: Xen's own list of entries, each a head of 8 bytes and a structure.

Source: Xen xen/include/public/hvm/save.h (``hvm_save_descriptor``), arch-x86/hvm/save.h, and what
the hypervisor enforces when it loads them (xen/arch/x86/hvm/save.c, ``hvm_load``): the header comes
first with its magic number, an entry of an unknown type is refused, END is last.
"""

import struct
from collections.abc import Iterator

from isthmus.translate.xen.fault import wrong
from isthmus.translate.xen.knowledge import RecordType, by_number
from isthmus.values import Value

MAGIC = 0x54381286
VERSION = 1
MAX_VCPUS = 4096
"""More than any Xen gives a guest (xen/include/public/hvm/hvm_info_table.h: 128; 4.22 more)."""

_HEAD = struct.Struct("<HHI")
_HEADER = struct.Struct("<II")


class Entry(Value, frozen=True):
    """One entry: its kind, its instance (the vCPU), and where its structure lies in the body."""

    kind: RecordType
    instance: int
    start: int
    end: int


def entries(body: bytes | bytearray) -> Iterator[Entry]:
    """The entries before END, each checked.

    :raises BodyError: not what ``hvm_load`` would take.
    """
    known = by_number("hvm")
    seen: set[tuple[int, int]] = set()
    at = 0
    while True:
        if len(body) - at < _HEAD.size:
            wrong(f"entry at {at:#x}: the list does not end with END")
        number, instance, length = _HEAD.unpack_from(body, at)
        kind = known.get(number)
        if kind is None:
            wrong(f"entry at {at:#x}: unknown type {number}, which Xen refuses")
        start = at + _HEAD.size
        end = start + length
        if end > len(body):
            wrong(f"entry at {at:#x}, {kind.name}: length {length} is beyond the record's end")
        if not kind.least <= length <= kind.most:
            wrong(
                f"entry at {at:#x}, {kind.name}: length {length}, expected {kind.least}"
                + (f" to {kind.most}" if kind.most != kind.least else "")
            )
        if (at == 0) != (kind.name == "HEADER"):
            wrong(f"entry at {at:#x}: {kind.name}, but HEADER is the first and only the first")
        if kind.name == "END":
            if any(body[end:]):
                wrong(f"entry at {at:#x}, END: bytes other than 0 follow")
            return
        if (number, instance) in seen:
            wrong(f"entry at {at:#x}, {kind.name}: a second one for instance {instance}")
        seen.add((number, instance))
        _check(kind, at, instance, bytes(body[start:end]))
        yield Entry(kind=kind, instance=instance, start=start, end=end)
        at = end


def _check(kind: RecordType, at: int, instance: int, content: bytes) -> None:
    if kind.per_vcpu and instance >= MAX_VCPUS:
        wrong(f"entry at {at:#x}, {kind.name}: instance {instance}, at most {MAX_VCPUS - 1}")
    if kind.name == "HEADER":
        magic, version = _HEADER.unpack_from(content)
        if magic != MAGIC:
            wrong(f"entry at {at:#x}, HEADER: magic {magic:#x}, expected {MAGIC:#x}")
        if version != VERSION:
            wrong(f"entry at {at:#x}, HEADER: version {version}, expected {VERSION}")
    elif kind.each:
        count = int.from_bytes(content[:4], "little")
        if len(content) != kind.base + count * kind.each:
            wrong(
                f"entry at {at:#x}, {kind.name}: count {count} does not fit length {len(content)}"
            )
