"""Xen migration streams made to order: for tests and for the bench, where no Xen runs.

Written from the specifications (Xen docs/specs/libxl-migration-stream.pandoc and
libxc-migration-stream.pandoc), not with the code of ``translate/xen``, so that each checks the
other.
"""

import struct
from collections.abc import Sequence

PAGE = 4096
BATCH = 1024
"""Pages in one PAGE_DATA record as libxc sends them (xg_sr_common.h, MAX_BATCH_SIZE)."""

GO = b"domain is yours, you are cleared to unpause\0"
"""What ``xl migrate`` sends behind the stream (tools/xl/xl.h, migrate_permission_to_go)."""
BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"

INTEL_CAPS = 0x1000C02
"""MCG_CAP of a guest born on Intel, as seen in the lab (Xen 4.17)."""


class InMemory:
    """A channel of :mod:`isthmus.translate.xen.transport` whose two ends are bytes here.

    ``out`` is what came through; ``passed`` how many bytes of it were let pass unseen.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.out = bytearray()
        self.taken = 0
        self.passed = 0

    def take(self, count: int) -> bytes | None:
        """The next ``count`` bytes; None where there are not as many."""
        if count > len(self._data) - self.taken:
            self.taken = len(self._data)
            return None
        self.taken += count
        return self._data[self.taken - count : self.taken]

    def give(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` on."""
        self.out += data

    def move(self, count: int) -> bool:
        """Let ``count`` bytes pass; False where there are not as many."""
        part = self._data[self.taken : self.taken + count]
        self.out += part
        self.taken += len(part)
        self.passed += len(part)
        return len(part) == count

    def rest(self) -> None:
        """Let everything pass."""
        self.move(len(self._data) - self.taken)


def record(number: int, body: bytes = b"") -> bytes:
    """One record of either layer, padded to 8 bytes."""
    return struct.pack("<II", number, len(body)) + body + bytes(-len(body) % 8)


def xl_header(config: bytes = b'{"c_info": {"type": "pv"}}\0', flags: int = 3) -> bytes:
    """The header of ``xl`` with a configuration."""
    data = struct.pack("<I", len(config)) + config
    magic = b"Xen saved domain, xl format\n \0 \r"
    return magic + struct.pack("<IIII", 0x01020304, flags, 0, len(data)) + data


def libxl(*records: bytes, version: int = 2, options: int = 0) -> bytes:
    """The header of libxl, and its records."""
    return b"LibxlFmt" + struct.pack(">II", version, options) + b"".join(records)


def libxc(kind: int, *records: bytes, version: int = 3, options: int = 0, shift: int = 12) -> bytes:
    """The two headers of libxc (``kind`` 1 is PV, 2 HVM), and its records."""
    image = b"\xff" * 8 + struct.pack(">IIHHI", 0x58454E46, version, options, 0, 0)
    return image + struct.pack("<IHHII", kind, shift, 0, 4, 17) + b"".join(records)


def page_data(pfns: Sequence[int], content: bytes) -> bytes:
    """PAGE_DATA; ``pfns`` carry their page type in bits 60 to 63."""
    return record(1, struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *pfns) + content)


def vcpu(number: int, context: bytes) -> bytes:
    """The body of a PV vCPU record."""
    return struct.pack("<II", number, 0) + context


def extended(number: int, caps: int, *, ext_ctl: int = 0, words: int = 4) -> bytes:
    """X86_PV_VCPU_EXTENDED with the first ``words`` numbers of its machine-check part."""
    mce = struct.pack("<QQQQ", caps, 0x1111, 0x2222, ext_ctl)[: 8 * words]
    head = struct.pack("<IIQQHHBBH", number, 32 + len(mce), 0x10, 0x20, 1, 2, 0, 1, 0)
    return record(5, vcpu(number, head + mce))


def hvm_entry(number: int, instance: int, content: bytes) -> bytes:
    """One entry of HVM_CONTEXT."""
    return struct.pack("<HHI", number, instance, len(content)) + content


HVM_HEADER = hvm_entry(1, 0, struct.pack("<IIQII", 0x54381286, 1, 0, 0x306A9, 2_000_000))
HVM_END = hvm_entry(0, 0, b"")


def hvm_context(caps: int, vcpus: int = 2, *, ext_ctl: int = 0) -> bytes:
    """HVM_CONTEXT with every kind of entry that Xen 4.17 writes."""
    parts = [HVM_HEADER]
    single = {3: 8, 4: 400, 7: 16, 8: 8, 9: 8, 10: 56, 11: 24, 12: 1048, 13: 8, 15: 32}
    each = {2: 1032, 5: 24, 6: 1024, 14: 240, 16: 24 + 832, 17: 216, 19: 8}
    parts += [hvm_entry(number, 0, bytes(size)) for number, size in single.items()]
    for one in range(vcpus):
        parts += [hvm_entry(number, one, bytes(size)) for number, size in each.items()]
        parts.append(hvm_entry(18, one, struct.pack("<QQQQ", caps, 1, 2, ext_ctl)))
        parts.append(hvm_entry(20, one, struct.pack("<IIIIQ", 1, 0, 0x48, 0, 1)))
    return record(9, b"".join([*parts, HVM_END]))


def msr_policy(platform_info: int) -> bytes:
    """X86_MSR_POLICY, with PLATFORM_INFO (0xce) between others."""
    values = {0x8B: 0xCE, 0xCE: platform_info, 0x10A: 1 << 31}
    entries = (struct.pack("<IIQ", number, 0, value) for number, value in values.items())
    return record(0x12, b"".join(entries))


def pv_image(
    pages: bytes,
    *,
    caps: int = INTEL_CAPS,
    vcpus: int = 2,
    ext_ctl: int = 0,
    platform_info: int = 0,
) -> bytes:
    """The libxc image of a 64-bit PV guest around ready PAGE_DATA records."""
    each = b"".join(
        record(4, vcpu(one, bytes(5168)))
        + extended(one, caps, ext_ctl=ext_ctl)
        + record(6, vcpu(one, struct.pack("<QQ", 7, 7) + bytes(832)))
        + record(12, vcpu(one, struct.pack("<IIQ", 0xC0000103, 0, one)))
        for one in range(vcpus)
    )
    return libxc(
        1,
        record(2, struct.pack("<BB6x", 8, 4)),
        record(0x11, struct.pack("<6I", 0, 0xFFFFFFFF, 13, 0, 0, 0)),
        msr_policy(platform_info),
        record(0x10),
        record(3, struct.pack("<IIQQ", 0, 1023, 5, 6)),
        pages,
        record(8, struct.pack("<IIQII", 0, 2_000_000, 12345, 1, 0)),
        record(7, bytes(PAGE)),
        each,
        record(0),
    )


def hvm_image(
    pages: bytes, *, caps: int = INTEL_CAPS, ext_ctl: int = 0, platform_info: int = 0
) -> bytes:
    """The libxc image of an HVM guest around ready PAGE_DATA records."""
    return libxc(
        2,
        record(0x11, struct.pack("<6I", 0, 0xFFFFFFFF, 13, 0, 0, 0)),
        msr_policy(platform_info),
        record(0x10),
        pages,
        record(8, struct.pack("<IIQII", 0, 2_000_000, 12345, 1, 0)),
        record(10, struct.pack("<IIQQ", 1, 0, 1, 0xFEFF5)),
        hvm_context(caps, ext_ctl=ext_ctl),
        record(0),
    )


def emulator_records() -> bytes:
    """What libxl writes of QEMU behind an HVM guest's image."""
    store = struct.pack("<II", 2, 0) + b"physmap/f0000000/start_addr\0f0000000\0"
    return record(2, store) + record(3, struct.pack("<II", 2, 0) + b"QEMU-device-state")


def stream(image: bytes, *more: bytes) -> bytes:
    """A whole stream as ``xl migrate`` sends it, without the handshake."""
    return xl_header() + libxl(record(1), image, *more, record(0))


def some_pages(count: int = 3) -> bytes:
    """PAGE_DATA of ``count`` pages, with one that has no data."""
    content = b"".join(bytes([index % 251]) * PAGE for index in range(count))
    return page_data([*range(count), 0xF << 60 | 77], content)


def pv_stream(**options: int) -> bytes:
    """A small PV guest's stream."""
    return stream(pv_image(some_pages(), **options))


def hvm_stream(**options: int) -> bytes:
    """A small HVM guest's stream."""
    return stream(hvm_image(some_pages(), **options), emulator_records())


def checkpointed_stream() -> bytes:
    """A Remus stream: libxc's CHECKPOINT, libxl's records to CHECKPOINT_END, libxc's again."""
    first = pv_image(some_pages())[: -len(record(0))]
    inner = record(0xE) + emulator_records() + record(5, struct.pack("<I", 0)) + record(4)
    return stream(first + inner + some_pages(2) + extended(0, INTEL_CAPS) + record(0))
