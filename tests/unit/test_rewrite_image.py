"""Reading a kernel image: its table of patch sites in each layout, and what is refused."""

import gzip
import lzma
import struct
from pathlib import Path

import pytest

from isthmus.errors import InputError, IsthmusError
from isthmus.places import cache_folder
from isthmus.qualification.lab.kernel import fetch_kernel
from isthmus.translate.rewrite.guest import UnknownKernelError, find_slide, standing
from isthmus.translate.rewrite.image import KernelImage, unpack
from isthmus.translate.rewrite.knowledge import knowledge
from isthmus.translate.rewrite.plan import sites
from isthmus.translate.rewrite.record import RewriteOrder, Written
from isthmus.values import from_json, to_json

TEXT, TABLE, REPLACED = 0xFFFFFFFF81000000, 0xFFFFFFFF82000000, 0xFFFFFFFF82001000


def vmlinux(
    layout: int = 12, *, target: int = TEXT + 0x10, count: int = 1, notes: bytes = b"note"
) -> bytes:
    """A kernel with one patched place: RDTSCP for RDTSC."""
    text = bytearray(b"\x90" * 0x2000)
    text[0x10:0x15] = bytes.fromhex("0f31909090")
    head = struct.pack("<ii", target - TABLE, REPLACED - TABLE - 4)
    middle = {12: struct.pack("<HBB", 59, 5, 3), 13: struct.pack("<HBBB", 59, 5, 3, 3)}
    middle[14] = struct.pack("<IBB", 59, 5, 3)
    table = (head + middle[layout]) * count
    parts = [(".text", TEXT, bytes(text), 6), (".altinstructions", TABLE, table, 2)]
    parts += [(".altinstr_replacement", REPLACED, bytes.fromhex("0f01f9"), 6)]
    parts += [(".notes", TABLE + 0x2000, notes, 2)]
    body, headers, names = bytearray(64), bytes(64), b"\0"
    for name, address, data, flags in parts:
        headers += struct.pack(
            "<IIQQQQIIQQ", len(names), 1, flags, address, len(body), len(data), 0, 0, 1, 0
        )
        names += name.encode() + b"\0"
        body += data
    headers += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, len(body), len(names), 0, 0, 1, 0)
    body += names
    body[:6], body[40:48] = b"\x7fELF\x02\x01", struct.pack("<Q", len(body))
    body[60:64] = struct.pack("<HH", len(parts) + 2, len(parts) + 1)
    return bytes(body) + headers


def bzimage(payload: bytes) -> bytes:
    header = bytearray(0x400)
    header[0x1F1], header[0x202:0x208] = 1, b"HdrS\x0f\x02"
    header[0x248:0x250] = struct.pack("<II", 0, len(payload))
    return bytes(header) + payload


def note(owner: bytes, kind: int, content: bytes) -> bytes:
    head = struct.pack("<III", len(owner), len(content), kind)
    return head + b"".join(part + bytes(-len(part) % 4) for part in (owner, content))


def test_a_kernel_is_known_by_its_builds_id_which_kaslr_does_not_move() -> None:
    """Until 2024 KASLR moved the addresses in Xen's notes, and no such guest was rewritten."""
    entry, identity = note(b"Xen\0", 1, b"\x80" * 8), note(b"GNU\0", 3, b"twenty bytes of hash")
    image = KernelImage.open(vmlinux(notes=entry + identity + note(b"Linux\0", 257, b"x")))
    assert image.identity() == (TABLE + 0x2000 + len(entry), identity)


@pytest.mark.parametrize(
    "notes",
    [note(b"Xen\0", 3, b"not GNU's"), note(b"GNU\0", 1, b"no id"), b"rubbish", b"\xff" * 40],
)
def test_a_kernel_without_a_builds_id_is_known_by_all_of_its_notes(notes: bytes) -> None:
    assert KernelImage.open(vmlinux(notes=notes)).identity() == (TABLE + 0x2000, notes)


def test_a_kernel_without_notes_has_no_identity() -> None:
    assert KernelImage.open(vmlinux(notes=b"")).identity() is None


@pytest.mark.parametrize("layout", [12, 13, 14])
def test_each_layout_of_the_table(layout: int) -> None:
    # Three entries: no other layout's size divides the table then.
    (one, *_) = KernelImage.open(vmlinux(layout, count=1)).alternatives()
    assert (one.address, one.length, one.feature) == (TEXT + 0x10, 5, 59)
    assert one.replacement == bytes.fromhex("0f01f9")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bytes])
def test_each_packing(pack) -> None:
    image = KernelImage.open(bzimage(pack(vmlinux())))
    assert image.text.address == TEXT
    assert [site.address for site in sites(image.alternatives(), image)] == [TEXT + 0x10]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not a kernel image"),
        (b"\x7fELF\x02\x01" + bytes(20), "not an ELF file"),
        (bzimage(b"no such packing"), "packed in a way"),
        (bzimage(gzip.compress(b"x" * 100)), "not an ELF"),
        (bzimage(b"\xfd7zXZ\0" + bytes(50)), "damaged"),
        (vmlinux(target=TEXT - 5), "form that is not known"),
    ],
)
def test_what_is_no_kernel_is_told_in_a_line(data: bytes, word: str) -> None:
    with pytest.raises(InputError, match=word):
        KernelImage.open(data).alternatives()


def test_the_slide_is_found_and_a_strange_page_is_refused() -> None:
    image = KernelImage.open(vmlinux())
    slide = 37 * (2 << 20)
    page = image.read(TEXT, 0x1000)
    assert find_slide(image, TEXT + slide, page) == slide
    with pytest.raises(UnknownKernelError):
        find_slide(image, TEXT + slide, bytes(0x1000))


def test_records_and_orders_survive_the_disk() -> None:
    one = Written(address=TEXT, physical=16, before="0f01f96690", after="0faee80f31", why="rdtscp")
    assert from_json(to_json(one), Written, where="") == one
    order = RewriteOrder(
        record=Path("r"), born=frozenset({"rdtscp"}), features=frozenset(), maker="", memory_mib=1
    )
    assert from_json(to_json(order), RewriteOrder, where="") == order


def test_every_rewriting_has_a_source() -> None:
    table = knowledge()
    for one in (*table.features, *table.makers):
        assert one.origin and one.to and one.why and one.source
    for page in table.pages:
        assert page.why and page.source


@pytest.mark.lab
@pytest.mark.parametrize("series", [None, "6.12"])
def test_a_real_kernels_clock_and_hypercalls_are_found(series: str | None) -> None:
    try:
        kernel = fetch_kernel(series, cache=cache_folder(), progress=lambda _: None)
    except IsthmusError as error:
        pytest.skip(str(error))
    image = KernelImage.open(kernel.vmlinuz.read_bytes())
    found = sites(image.alternatives(), image)
    forms = [tuple(form.hex() for form in map(site.form, range(len(site.entries) + 1)))
             for site in found]  # fmt: skip
    assert forms.count(("0f31909090", "0faee80f31", "0f01f9")) >= 15
    assert forms.count(("0f01c1", "0f01d9")) >= 3
    (vdso,) = image.vdsos()
    assert len(sites(vdso[1].alternatives(), vdso[1], base=vdso[0])) >= 4
    assert unpack(image.data) is image.data


class Monitor:
    """The text of `info registers -a`, and an interrupt table whose gate 6 leads to ENTRY."""

    ENTRY = 0xFFFF_FFFF_8180_1220

    def __init__(self, text: str) -> None:
        self.text = text

    async def command(self, _line: str) -> str:
        return self.text

    async def ask(self, *requests: bytes) -> list[bytes]:
        return [b"OK"] * len(requests)

    async def memory(self, _address: int, _length: int) -> bytes:
        low, middle = self.ENTRY.to_bytes(8, "little")[:2], self.ENTRY.to_bytes(8, "little")[2:4]
        return low + b"\x10\0\0\x8e" + middle + b"\xff\xff\xff\xff" + bytes(4)


@pytest.mark.parametrize(
    ("pointer", "rips"), [("RIP=ffffffff81000100", (TEXT + 0x100,)), ("EIP=08048000", ())]
)
async def test_a_vcpu_in_32_bit_code_has_its_kernel_all_the_same(
    pointer: str, rips: tuple[int, ...]
) -> None:
    text = (
        f"\nCPU#0\n{pointer} RFL=00000246\nIDT=     fffffe0000000000 00000fff\n"
        "CR0=80050033 CR2=0000000000000000 CR3=000000000288e000 CR4=000006b0\n"
    )
    found = await standing(Monitor(text))
    assert (found.entry, found.rips, found.space.cr3) == (Monitor.ENTRY, rips, 0x288E000)
