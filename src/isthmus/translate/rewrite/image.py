"""The kernel's own list of patch sites, read from the image that the guest booted.

Linux keeps, for each place that it may patch at boot, an entry in ``.altinstructions``: where, how
long, for which feature, and what to write (arch/x86/include/asm/alternative.h, struct alt_instr).
The running guest has thrown that section away, so it is taken from the image: a vmlinux, or a
bzImage, whose header says where the packed vmlinux lies (Documentation/arch/x86/boot.rst,
``payload_offset``, ``payload_length``).  Distributions strip symbols, never section headers.

The vDSO, which every program calls to read the clock, is an ELF file of its own among the kernel's
data, with alternatives of its own (arch/x86/entry/vdso/vma.c, init_vdso_image).  All processes map
the same physical pages of it.
"""

import bz2
import contextlib
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator

from isthmus.errors import InputError
from isthmus.translate.rewrite import lz4
from isthmus.values import Value

LIMIT = 1 << 30
PAGE = 0x1000
UNPACK_TIMEOUT_S = 120
_ELF = b"\x7fELF\x02\x01"
_SHN_SIZE, _PROGBITS, _EXECUTABLE = 64, 1, 4
_KERNEL_SPACE = 0xFFFF_FFFF_8000_0000
_BUILD_ID = 3  # NT_GNU_BUILD_ID, of the owner "GNU" (binutils: include/elf/common.h)

# What struct alt_instr has been, by its size, with the offset of the two lengths and the way in
# which a negated feature is marked.  12 bytes: padlen went (23c1ad538f4f, 5.13); 13: before; 14: 32
# bits of feature and flags (5d1dd961e743, 6.3).
_LAYOUTS = ((14, 12, 1 << 16), (12, 10, 1 << 15), (13, 10, 1 << 15))


class Section(Value, frozen=True):
    """One section: linear address, place in the file, size in bytes; whether it holds code."""

    name: str
    address: int
    offset: int
    size: int
    code: bool
    stored: bool


class Alternative(Value, frozen=True):
    """One entry: at ``address``, ``length`` bytes, ``replacement`` if ``feature`` is there.

    ``feature`` is Linux' number (word * 32 + bit), ``negated``: if it is *not* there.
    ``home`` is the linear address at which ``replacement`` was assembled.
    """

    address: int
    length: int
    feature: int
    negated: bool
    replacement: bytes
    home: int


class Elf:
    """An ELF64 file of this architecture in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sections: tuple[Section, ...] = tuple(_sections(data))

    def section(self, name: str) -> Section | None:
        """The section of that name."""
        return next((one for one in self.sections if one.name == name), None)

    def content(self, section: Section) -> bytes:
        """All bytes of a section."""
        return self.data[section.offset : section.offset + section.size]

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a linear address; empty where the file stores none."""
        for one in self.sections:
            if one.stored and one.address <= address and address + size <= one.address + one.size:
                at = one.offset + address - one.address
                return self.data[at : at + size]
        return b""

    def alternatives(self) -> tuple[Alternative, ...]:
        """The entries in the order in which the kernel applies them.

        :raises InputError: the table has a form that this version does not know.
        """
        table = self.section(".altinstructions")
        if table is None or not table.size:
            return ()
        for size, lengths, negation in _LAYOUTS:
            if table.size % size == 0:
                entries = list(self._entries(table, size, lengths, negation))
                if all(entry is not None for entry in entries):
                    return tuple(entry for entry in entries if entry is not None)
        raise InputError("the kernel's table of alternatives has a form that is not known")

    def _entries(
        self, table: Section, size: int, lengths: int, negation: int
    ) -> Iterator[Alternative | None]:
        """The entries read in one layout; None for one that makes no sense."""
        code = [one for one in self.sections if one.code]
        data = self.content(table)
        for at in range(0, len(data), size):
            here = table.address + at
            address = here + _signed(data[at : at + 4])
            home = here + 4 + _signed(data[at + 4 : at + 8])
            feature = int.from_bytes(data[at + 8 : at + (12 if size == 14 else 10)], "little")
            length, replaced = data[at + lengths], data[at + lengths + 1]
            replacement = self.read(home, replaced)
            inside = any(one.address <= address < one.address + one.size for one in code)
            if not inside or not length or replaced > length or len(replacement) != replaced:
                yield None
                return
            yield Alternative(
                address=address,
                length=length,
                feature=feature & (0xFFFF if size == 14 else 0x7FFF),
                negated=bool(feature & negation),
                replacement=replacement,
                home=home,
            )


class KernelImage(Elf):
    """A vmlinux."""

    @classmethod
    def open(cls, data: bytes) -> "KernelImage":
        """Read a vmlinux or a bzImage.

        :raises InputError: it is neither, or packed in a way that cannot be unpacked here.
        """
        if not data.startswith(_ELF):
            data = unpack(_payload(data))
        image = cls(data)
        if image.section(".text") is None or image.section(".altinstructions") is None:
            raise InputError("the kernel image has no text or no table of alternatives")
        return image

    @property
    def text(self) -> Section:
        """The section that the kernel runs in."""
        text = self.section(".text")
        assert text is not None
        return text

    def identity(self) -> tuple[int, bytes] | None:
        """What proves that a guest runs this very build: linear address, bytes that stand there.

        Of the notes it is the one with the build's id, whole: KASLR has moved the addresses in
        others (Xen's), until Linux 6.9 and its stable series of 2024 left them alone (aaa8736370db,
        "x86, relocs: Ignore relocations in .notes section").  Without an id it is all notes;
        without notes, None.
        """
        notes = self.section(".notes")
        if notes is None or not notes.size:
            return None
        data, at = self.content(notes), 0
        while at + 12 <= len(data):
            # Elf64_Nhdr, and both fields padded to four bytes (System V ABI, "Note Section").
            name, size, kind = struct.unpack_from("<III", data, at)
            end = at + 12 + (name + 3 & -4) + (size + 3 & -4)
            if kind == _BUILD_ID and data[at + 12 : at + 12 + name] == b"GNU\0" and size:
                return notes.address + at, data[at:end]
            at = end
        return notes.address, data

    def vdsos(self) -> Iterator[tuple[int, Elf]]:
        """The 64-bit vDSO images, each with its linear address in the kernel."""
        for section in self.sections:
            if not section.stored or section.code or section.address < _KERNEL_SPACE:
                continue
            content = self.content(section)
            at = content.find(_ELF)
            while at >= 0:
                # A shared object for x86-64 (e_type 3, e_machine 62) at a page's beginning.
                if (section.address + at) % PAGE == 0 and content[at + 16 : at + 20] == b"\3\0>\0":
                    inner = content[at : at + (64 << 10)]
                    with contextlib.suppress(InputError):
                        yield section.address + at, Elf(inner)
                at = content.find(_ELF, at + 1)


def unpack(data: bytes) -> bytes:
    """Unpack a bzImage's payload (usr/include/linux names: gzip, bzip2, lzma, xz, lz4, zstd).

    :raises InputError: it is damaged or packed in another way; zstd needs the program ``zstd``.
    """
    try:
        if data.startswith(_ELF):
            return data
        if data.startswith(lz4.MAGIC):
            return lz4.unpack(data, limit=LIMIT)
        if data.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(31).decompress(data, LIMIT)
        if data.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data, LIMIT)
        if data.startswith(b"]\0\0"):
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, LIMIT)
        if data.startswith(b"BZh"):
            return bz2.BZ2Decompressor().decompress(data, LIMIT)
    except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
        raise InputError("the kernel image is damaged") from error
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return _zstd(data)
    raise InputError("the kernel image is packed in a way that is not known")


def _zstd(data: bytes) -> bytes:
    if shutil.which("zstd") is None:
        raise InputError("the kernel image is packed by zstd", remedy="apt-get install zstd")
    try:
        # What Linux appends (the unpacked length) is no frame; all before it comes out.
        done = subprocess.run(
            ["zstd", "-dcq", "--no-check"], input=data[:-4], capture_output=True, check=False,
            timeout=UNPACK_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError("the kernel image cannot be unpacked by zstd") from error
    return done.stdout


def _payload(data: bytes) -> bytes:
    """The packed vmlinux in a bzImage (boot protocol 2.08 and later)."""
    if data[0x202:0x206] != b"HdrS" or int.from_bytes(data[0x206:0x208], "little") < 0x208:
        raise InputError("not a kernel image", remedy="name a bzImage or a vmlinux")
    start = ((data[0x1F1] or 4) + 1) * 512 + int.from_bytes(data[0x248:0x24C], "little")
    return data[start : start + int.from_bytes(data[0x24C:0x250], "little")]


def _sections(data: bytes) -> Iterator[Section]:
    """The section headers (System V ABI, chapter 4)."""
    if not data.startswith(_ELF) or len(data) < 64:
        raise InputError("not an ELF file of 64 bits")
    table = int.from_bytes(data[40:48], "little")
    count, names = (int.from_bytes(data[at : at + 2], "little") for at in (60, 62))
    if not count or names >= count or table + count * _SHN_SIZE > len(data):
        raise InputError("the ELF file has no section headers")

    def field(index: int, at: int, size: int) -> int:
        place = table + index * _SHN_SIZE + at
        return int.from_bytes(data[place : place + size], "little")

    strings = field(names, 24, 8)
    for index in range(count):
        start = strings + field(index, 0, 4)
        end = data.find(b"\0", start, start + 256)
        yield Section(
            name=data[start:end].decode("ascii", "replace") if end > start else "",
            address=field(index, 16, 8),
            offset=field(index, 24, 8),
            size=field(index, 32, 8),
            code=bool(field(index, 8, 8) & _EXECUTABLE),
            stored=field(index, 4, 4) == _PROGBITS and field(index, 16, 8) > 0,
        )


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)
