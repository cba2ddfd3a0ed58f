"""The grammar of Xen's migration stream, without input or output.

:meth:`Walk.run` is a generator.  It yields what it wants done (:class:`Take`, :class:`Give`,
:class:`Pass`, :class:`Seal`, :class:`Rest`) and gets the bytes it took sent in, so that the same
code serves pipes, files and tests.  What was checked is given on at once, record by record; nothing
of a wrong record ever is.

Layers (Xen docs/specs): the header of ``xl`` (tools/xl/xl.h, ``save_file_header``) if there is
one; libxl's header and records; behind LIBXC_CONTEXT libxc's headers and records up to its END,
then libxl's again up to END.  In a checkpointed stream (Remus, COLO) libxc's CHECKPOINT hands the
channel to libxl's records up to CHECKPOINT_END and takes it back.  A bare libxl or libxc stream is
read too.
"""

import struct
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass

from isthmus.translate.xen import bodies, hvm_context
from isthmus.translate.xen.fault import BodyError, StreamError, wrong
from isthmus.translate.xen.knowledge import LIBXC_MOST, RecordType, Rule, by_number, structures
from isthmus.translate.xen.rules import Change, rewrite

XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
_XL_HEADER = struct.Struct("<IIII")
_XL_BYTEORDER = 0x01020304
_XL_JSON, _XL_STREAM_V2 = 1, 2
MAX_CONFIG_BYTES = 16 << 20
"""Most that we let ``xl`` send as the guest's configuration; real ones have some kilobytes."""

LIBXL_IDENT = b"LibxlFmt"
LIBXL_VERSION = 2
LIBXC_MARKER = b"\xff" * 8
LIBXC_ID = 0x58454E46
LIBXC_VERSIONS = (2, 3)
_BIG_ENDIAN = 1
_DOMAIN_TYPES = {1: "pv", 2: "hvm"}
_PAGE_SHIFT = 12
_OPTIONAL = 1 << 31
_RECORD = struct.Struct("<II")
_ALIGN = 8
_PASSES = frozenset({"emulator", "opaque"})
"""Bodies that may be large and mean nothing to us: only their head is looked at."""


@dataclass(frozen=True, slots=True)
class Take:
    """Wants exactly ``count`` bytes sent in."""

    count: int


@dataclass(frozen=True, slots=True)
class Give:
    """Wants these bytes sent on."""

    data: bytes | bytearray


@dataclass(frozen=True, slots=True)
class Pass:
    """Wants ``count`` bytes to go from the source to the sink unseen."""

    count: int


@dataclass(frozen=True, slots=True)
class Seal:
    """The END comes next: the report has to be on the disk before it is given."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Everything up to the end of the input belongs to xl's handshake and passes unseen."""


Effect = Take | Give | Pass | Seal | Rest
Steps = Generator[Effect, bytes, None]
Taking = Generator[Effect, bytes, bytes]


class Walk:
    """One walk through one stream.

    ``record`` and ``start`` tell where it is (for messages), ``counts`` how many records of each
    kind passed, ``pages`` how many pages of memory.
    """

    def __init__(self, rules: tuple[Rule, ...], report: Callable[[Change], None]) -> None:
        self.rules = rules
        self.report = report
        self.offset = 0
        self.start = 0
        self.record = "header"
        self.counts: Counter[str] = Counter()
        self.pages = 0
        self.guest = ""
        self.xen = ""

    def run(self) -> Steps:
        """All steps up to the stream's end.

        :raises StreamError: naming offset, record and field.
        """
        try:
            yield from self._stream()
        except BodyError as error:
            raise StreamError.at(self.start, self.record, str(error)) from error

    def _take(self, count: int) -> Taking:
        data = yield Take(count)
        self.offset += count
        return data

    def _at(self, record: str) -> None:
        self.start = self.offset
        self.record = record

    def _stream(self) -> Steps:
        head = yield from self._take(8)
        if head == XL_MAGIC[:8]:
            yield from self._xl_header(head)
            self._at("libxl header")
            head = yield from self._take(8)
        if head == LIBXL_IDENT:
            yield from self._libxl(head)
        elif head == LIBXC_MARKER:
            yield from self._libxc(head, bare=True)
        else:
            wrong(f"begins with {head.hex()}, which is no header of xl, libxl or libxc")
        self._at("after the end")
        yield Rest()

    def _xl_header(self, head: bytes) -> Steps:
        self.record = "xl header"
        magic = head + (yield from self._take(len(XL_MAGIC) - 8))
        if magic != XL_MAGIC:
            wrong(f"magic {magic!r}")
        header = yield from self._take(_XL_HEADER.size)
        order, mandatory, _optional, length = _XL_HEADER.unpack(header)
        if order != _XL_BYTEORDER:
            wrong(f"byteorder {order:#x}, expected {_XL_BYTEORDER:#x}")
        if mandatory & ~(_XL_JSON | _XL_STREAM_V2):
            wrong(f"mandatory_flags {mandatory:#x} has unknown bits")
        if not mandatory & _XL_STREAM_V2:
            wrong("mandatory_flags: a stream of Xen 4.5 or older, which is not read")
        if length > MAX_CONFIG_BYTES:
            wrong(f"optional_data_len {length}, at most {MAX_CONFIG_BYTES}")
        config = (yield from self._take(length)) if length else b""
        if mandatory & _XL_JSON:
            if length < 4:
                wrong(f"optional_data_len {length} has no room for the configuration's size")
            size = int.from_bytes(config[:4], "little")
            if size > length - 4:
                wrong(f"configuration of {size} bytes in optional_data_len {length}")
        yield Give(magic + header + config)

    def _libxl(self, head: bytes) -> Steps:
        self.record = "libxl header"
        rest = yield from self._take(8)
        version, options = struct.unpack(">II", rest)
        if version != LIBXL_VERSION:
            wrong(f"version {version}, expected {LIBXL_VERSION}")
        if options & _BIG_ENDIAN:
            wrong(f"options {options:#x}: big-endian, which no Xen reads")
        yield Give(head + rest)
        yield from self._libxl_records(in_checkpoint=False)

    def _libxl_records(self, *, in_checkpoint: bool) -> Steps:
        seen: set[str] = set()
        while True:
            kind, length, head = yield from self._head("libxl", seen)
            name = kind.name if kind else ""
            if in_checkpoint and name in {"END", "LIBXC_CONTEXT"}:
                wrong("inside a checkpoint")
            if name == "CHECKPOINT_END" and not in_checkpoint:
                wrong("outside a checkpoint")
            if name == "END":
                if "LIBXC_CONTEXT" not in seen:
                    wrong("there was no LIBXC_CONTEXT: the stream holds no guest")
                yield Seal()
                yield Give(head)
                return
            if name == "LIBXC_CONTEXT":
                yield Give(head)
                self._at("libxc image header")
                marker = yield from self._take(8)
                yield from self._libxc(marker, bare=False)
            elif name == "CHECKPOINT_END":
                yield Give(head)
                return
            else:
                yield from self._body(kind, length, head, bodies.Guest(""))

    def _libxc(self, marker: bytes, *, bare: bool) -> Steps:
        self.record = "libxc image header"
        image = marker + (yield from self._take(16))
        _, number, version, options = struct.unpack_from(">QIIH", image)
        if marker != LIBXC_MARKER:
            wrong(f"marker {marker.hex()}, expected {LIBXC_MARKER.hex()}")
        if number != LIBXC_ID:
            wrong(f"id {number:#x}, expected {LIBXC_ID:#x}")
        if version not in LIBXC_VERSIONS:
            wrong(f"version {version}, expected 2 or 3")
        if options & _BIG_ENDIAN:
            wrong(f"options {options:#x}: big-endian, which no Xen reads")
        yield Give(image)
        self._at("libxc domain header")
        domain = yield from self._take(16)
        number, shift, _, major, minor = struct.unpack("<IHHII", domain)
        if number not in _DOMAIN_TYPES:
            wrong(f"type {number}, expected 1 (x86 PV) or 2 (x86 HVM)")
        if shift != _PAGE_SHIFT:
            wrong(f"page_shift {shift}, expected {_PAGE_SHIFT}")
        self.guest = _DOMAIN_TYPES[number]
        self.xen = f"{major}.{minor}"
        yield Give(domain)
        yield from self._libxc_records(bare=bare, announced=version >= 3)

    def _libxc_records(self, *, bare: bool, announced: bool) -> Steps:
        guest = bodies.Guest(self.guest)
        seen: set[str] = set()
        while True:
            kind, length, head = yield from self._head("libxc", seen)
            name = kind.name if kind else ""
            if kind and guest.kind not in kind.guests:
                wrong(f"in the stream of a guest of type {guest.kind}")
            if kind and kind.backwards:
                wrong("travels from the secondary to the primary only")
            if announced and "STATIC_DATA_END" not in seen and _holds_memory(kind):
                wrong("comes before STATIC_DATA_END")
            if name == "END":
                if bare:
                    yield Seal()
                yield Give(head)
                return
            if name == "PAGE_DATA":
                yield from self._page_data(length, head)
            elif name == "CHECKPOINT":
                yield Give(head)
                if not bare:
                    yield from self._libxl_records(in_checkpoint=True)
            else:
                yield from self._body(kind, length, head, guest)

    def _head(
        self, layer: str, seen: set[str]
    ) -> Generator[Effect, bytes, tuple[RecordType | None, int, bytes]]:
        """The next record's head; None for an optional record that nobody knows."""
        self._at(f"{layer} record")
        head = yield from self._take(_RECORD.size)
        number, length = _RECORD.unpack(head)
        kind = by_number(layer).get(number)
        if kind is None:
            self.record = f"{layer} record of type {number:#x}"
            if not number & _OPTIONAL:
                wrong("type is not known, and mandatory")
            if length > LIBXC_MOST:
                wrong(f"body_length {length}, at most {LIBXC_MOST}")
            self.counts["optional"] += 1
            return None, length, head
        self.record = kind.name
        bodies.check_length(kind, length)
        if kind.once and kind.name in seen:
            wrong("a second one")
        seen.add(kind.name)
        self.counts[f"{layer}.{kind.name}"] += 1
        return kind, length, head

    def _page_data(self, length: int, head: bytes) -> Steps:
        first = yield from self._take(8)
        count = int.from_bytes(first[:4], "little")
        if count < 1:
            wrong("count 0, expected at least one pfn")
        if 8 + 8 * count > length:
            wrong(f"count {count} does not fit body_length {length}")
        pfns = yield from self._take(8 * count)
        pages = bodies.data_pages(length, count, pfns)
        yield Give(head + first + pfns)
        if pages:
            yield Pass(pages * bodies.PAGE_BYTES)
            self.offset += pages * bodies.PAGE_BYTES
            self.pages += pages

    def _body(
        self, kind: RecordType | None, length: int, head: bytes, guest: bodies.Guest
    ) -> Steps:
        padding = -length % _ALIGN
        if kind is None or kind.body in _PASSES:
            given = head
            if kind and kind.body == "emulator":
                emulator = yield from self._take(8)
                bodies.check_emulator(emulator)
                given, length = head + emulator, length - 8
            yield Give(given)
            if length:
                yield Pass(length)
                self.offset += length
            yield from self._padding(padding)
            return
        body = bytearray((yield from self._take(length)) if length else b"")
        bodies.check_body(kind, body, guest)
        place = self.start + len(head)
        if kind.name == "HVM_CONTEXT":
            self._rewrite_entries(body, place)
        elif kind.name == "X86_MSR_POLICY":
            self._rewrite_msrs(body, place, kind.each)
        elif kind.name in structures():
            rewrite(
                self.rules,
                structures()[kind.name],
                body,
                end=bodies.extended_end(body),
                instance=bodies.vcpu_of(body),
                offset=place,
                report=self.report,
            )
        if padding:
            last = yield from self._take(padding)
            if any(last):
                wrong("padding is not 0")
            body += last
        yield Give(head + body)

    def _padding(self, count: int) -> Steps:
        if count:
            last = yield from self._take(count)
            if any(last):
                wrong("padding is not 0")
            yield Give(last)

    def _rewrite_msrs(self, body: bytearray, place: int, each: int) -> None:
        """The entries of a PV guest's MSR policy; Xen gives HVM guests the same on every host."""
        if self.guest != "pv":
            return
        for at in range(0, len(body), each):
            number = int.from_bytes(body[at : at + 4], "little")
            structure = structures().get(f"X86_MSR_POLICY.{number:08x}")
            if structure is None:
                continue
            entry = body[at : at + each]
            rewrite(
                self.rules,
                structure,
                entry,
                end=each,
                instance=0,
                offset=place + at,
                report=self.report,
            )
            body[at : at + each] = entry

    def _rewrite_entries(self, body: bytearray, place: int) -> None:
        for entry in hvm_context.entries(bytes(body)):
            self.counts[f"hvm.{entry.kind.name}"] += 1
            structure = structures().get(f"HVM_CONTEXT.{entry.kind.name}")
            if structure is None:
                continue
            content = body[entry.start : entry.end]
            rewrite(
                self.rules,
                structure,
                content,
                end=len(content),
                instance=entry.instance,
                offset=place + entry.start,
                report=self.report,
            )
            body[entry.start : entry.end] = content


def _holds_memory(kind: RecordType | None) -> bool:
    return kind is not None and kind.name in {"PAGE_DATA", "X86_PV_P2M_FRAMES"}
