"""Checks of the records' bodies, each as the receiving side of Xen makes it, or the specification.

A check takes the whole body and says by :class:`~isthmus.translate.xen.fault.BodyError` what is
wrong.  PAGE_DATA has a check of its own: of its list of pages alone, since the pages pass unseen.
"""

import re
import struct
from collections.abc import Callable

import numpy as np

from isthmus.translate.xen.fault import wrong
from isthmus.translate.xen.knowledge import RecordType

PAGE_BYTES = 4096
MAX_VCPU = 8191
"""Xen gives a PV guest at most 8192 vCPUs (xen/include/public/xen.h, MAX_VIRT_CPUS and later)."""

EMULATORS = (0, 1, 2)
"""libxl spec, Emulator Records: unknown, QEMU traditional, QEMU upstream."""

_WITHOUT_DATA = 0xD
"""Page types from here on (BROKEN, XALLOC, XTAB) have no page in the record (libxc spec)."""
_RESERVED_TYPES = (5, 8)
_BASIC_BYTES = {8: 5168, 4: 2800}
"""vcpu_guest_context by the guest's width (xen/include/public/arch-x86/xen.h)."""
_XENSTORE_KEY = re.compile(rb"[A-Za-z0-9/_@-]+")


class Guest:
    """What the records so far have said of the guest."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.width = 0


def check_length(kind: RecordType, length: int) -> None:
    """Hold a body's length to the record's bounds."""
    if not kind.least <= length <= kind.most:
        bounds = f"{kind.least}" if kind.least == kind.most else f"{kind.least} to {kind.most}"
        wrong(f"body_length {length}, expected {bounds}")
    if kind.each and (length < kind.base or (length - kind.base) % kind.each):
        wrong(f"body_length {length}, expected {kind.base} and a multiple of {kind.each}")


def data_pages(length: int, count: int, pfns: bytes) -> int:
    """How many pages follow the list of a PAGE_DATA record; checks the list and the length."""
    types = np.frombuffer(pfns, dtype="<u8") >> np.uint64(60)
    reserved = (types >= _RESERVED_TYPES[0]) & (types <= _RESERVED_TYPES[1])
    if reserved.any():
        index = int(np.flatnonzero(reserved)[0])
        wrong(f"pfn[{index}]: page type {int(types[index])} is reserved")
    pages = int(np.count_nonzero(types < _WITHOUT_DATA))
    expected = 8 + 8 * count + PAGE_BYTES * pages
    if length != expected:
        wrong(f"body_length {length}, expected {expected} for {count} pfns with {pages} pages")
    return pages


def check_body(kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    """The check that the record's type names, if any.

    :raises BodyError: which field is wrong.
    """
    check = _CHECKS.get(kind.body)
    if check is not None:
        check(kind, body, guest)


def check_emulator(body: bytes | bytearray) -> None:
    """The head that both emulator records begin with."""
    (emulator,) = struct.unpack_from("<I", body)
    if emulator not in EMULATORS:
        wrong(f"emulator_id {emulator} is reserved")


def vcpu_of(body: bytes | bytearray) -> int:
    """The vCPU's number that a vCPU record begins with."""
    return int.from_bytes(body[:4], "little")


def extended_end(body: bytes | bytearray) -> int:
    """Where the structure of X86_PV_VCPU_EXTENDED ends: Xen looks at no more than its ``size``."""
    if len(body) < 16:
        return len(body)
    return min(len(body), 8 + int.from_bytes(body[12:16], "little"))


def _xenstore(_kind: RecordType, body: bytes | bytearray, _guest: Guest) -> None:
    check_emulator(body)
    data = bytes(body[8:])
    if not data:
        return
    if not data.endswith(b"\0"):
        wrong("xenstore data: the last text has no NUL at its end")
    texts = data[:-1].split(b"\0")
    if len(texts) % 2:
        wrong(f"xenstore data: {len(texts)} texts are no pairs of key and value")
    for key in texts[::2]:
        if not _XENSTORE_KEY.fullmatch(key):
            wrong(f"xenstore data: {key[:40]!r} is no key")


def _emulator(_kind: RecordType, body: bytes | bytearray, _guest: Guest) -> None:
    check_emulator(body)


def _checkpoint_state(_kind: RecordType, body: bytes | bytearray, _guest: Guest) -> None:
    (control,) = struct.unpack_from("<I", body)
    if control != 0:
        wrong(f"control_id {control} does not travel from the primary to the secondary")


def _pv_info(_kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    width, levels = body[0], body[1]
    if (width, levels) not in {(4, 3), (8, 4)}:
        wrong(f"guest_width {width} with pt_levels {levels}, expected 4 with 3 or 8 with 4")
    guest.width = width


def _p2m_frames(_kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    first, last = struct.unpack_from("<II", body)
    if not guest.width:
        wrong("comes before X86_PV_INFO")
    if first > last:
        wrong(f"p2m_start_pfn {first:#x} is above p2m_end_pfn {last:#x}")
    # Frames of the table: a page of it holds 4096/width entries.
    entries = PAGE_BYTES // guest.width
    frames = last // entries - first // entries + 1
    if len(body) != 8 + 8 * frames:
        wrong(
            f"body_length {len(body)}, expected {8 + 8 * frames} for pfns {first:#x} to {last:#x}"
        )


def _vcpu(_kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    if not guest.width:
        wrong("comes before X86_PV_INFO")
    if len(body) > 8 and vcpu_of(body) > MAX_VCPU:
        wrong(f"vcpu_id {vcpu_of(body)}, at most {MAX_VCPU}")


def _vcpu_basic(kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    _vcpu(kind, body, guest)
    if len(body) > 8 and len(body) - 8 != _BASIC_BYTES[guest.width]:
        wrong(f"context of {len(body) - 8} bytes, expected {_BASIC_BYTES[guest.width]}")


def _vcpu_extended(kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    _vcpu(kind, body, guest)
    if len(body) == 8:
        return
    if len(body) < 16:
        wrong(f"context of {len(body) - 8} bytes has no size")
    size = int.from_bytes(body[12:16], "little")
    if size > len(body) - 8:
        wrong(f"size {size} is more than the context's {len(body) - 8} bytes")


def _vcpu_xsave(kind: RecordType, body: bytes | bytearray, guest: Guest) -> None:
    _vcpu(kind, body, guest)
    if 8 < len(body) < 24:
        wrong(f"context of {len(body) - 8} bytes, expected at least 16")


def _counted(kind: RecordType, body: bytes | bytearray, _guest: Guest) -> None:
    (count,) = struct.unpack_from("<I", body)
    if len(body) != kind.base + count * kind.each:
        wrong(f"count {count} does not fit body_length {len(body)}")


_CHECKS: dict[str, Callable[[RecordType, bytes | bytearray, Guest], None]] = {
    "xenstore": _xenstore,
    "emulator": _emulator,
    "checkpoint-state": _checkpoint_state,
    "pv-info": _pv_info,
    "p2m-frames": _p2m_frames,
    "vcpu-basic": _vcpu_basic,
    "vcpu-extended": _vcpu_extended,
    "vcpu-xsave": _vcpu_xsave,
    "vcpu-msrs": _vcpu,
    "counted": _counted,
}
