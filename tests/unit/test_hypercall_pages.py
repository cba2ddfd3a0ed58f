"""Pages of hypercalls as their hypervisors write them: known exactly, or not at all."""

import pytest

from isthmus.translate.rewrite.image import Section
from isthmus.translate.rewrite.pages import VMCALL, VMMCALL, changes, placeholders, recognise

IRET = 23  # HYPERVISOR_iret, xen/include/public/xen.h
AMD, INTEL = "AuthenticAMD", "GenuineIntel"


def entry(number: int, call: bytes, padding: bytes) -> bytes:
    code = b"\xb8" + number.to_bytes(4, "little") + call + b"\xc3"
    return code + padding * (32 - len(code))


def xen(call: bytes, *, padding: bytes = b"\xcc", iret: str = "alone") -> bytes:
    """``iret``: UD2 alone, UD2 written over the entry (older), or an entry like the others."""
    entries = [entry(number, call, padding) for number in range(128)]
    if iret == "alone":
        entries[IRET] = b"\x0f\x0b" + padding * 30
    elif iret == "over":
        entries[IRET] = b"\x0f\x0b" + entries[IRET][2:]
    return b"".join(entries)


XEN_PAGES = {
    "VT-x": xen(VMCALL),
    "SVM": xen(VMMCALL),
    "older": xen(VMCALL, padding=b"\0", iret="over"),
    "between": xen(VMMCALL, iret="over"),
    "KVM": xen(VMCALL, iret="like others"),
}


@pytest.mark.parametrize("name", XEN_PAGES)
def test_xens_page_is_known(name: str) -> None:
    page = XEN_PAGES[name]
    calls = recognise(page)
    assert calls is not None
    assert calls.name == "xen"
    assert len(calls.offsets) == (127 if name in {"VT-x", "SVM"} else 128)
    assert {page[at : at + 3] for at in calls.offsets} == {calls.instruction}


@pytest.mark.parametrize("begin", ["", "0d00000080"])
@pytest.mark.parametrize("call", [VMCALL, VMMCALL])
@pytest.mark.parametrize("rest", [b"\0", b"\x41"])
def test_the_page_of_an_enlightened_guest_is_known(begin: str, call: bytes, rest: bytes) -> None:
    """KVM writes the beginning only; behind it is what the guest had there."""
    code = bytes.fromhex(begin) + call + b"\xc3"
    calls = recognise(code.ljust(4096, rest))
    assert calls is not None
    assert (calls.name, calls.instruction) == ("hyperv", call)
    assert calls.offsets == (len(begin) // 2,)


@pytest.mark.parametrize("name", XEN_PAGES)
def test_one_byte_that_is_another_makes_it_an_unknown_page(name: str) -> None:
    page = XEN_PAGES[name]
    for at in range(0, len(page), 5):
        broken = bytearray(page)
        broken[at] ^= 0x18  # C1 becomes D9: one call of the other maker is no page, either
        assert recognise(bytes(broken)) is None, hex(at)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        bytes(4096),
        xen(VMCALL)[:-1],
        xen(VMCALL) + b"\xcc",
        xen(b"\x0f\x05\x90"),  # SYSCALL: a PV guest's
        xen(VMCALL)[32:] + xen(VMCALL)[:32],  # the numbers are not those of the places
        b"\x90" + VMCALL + b"\xc3" + bytes(4091),
        VMCALL + b"\x90" + bytes(4092),
    ],
)
def test_what_is_no_page_of_hypercalls_is_left(page: bytes) -> None:
    assert recognise(page) is None
    assert changes(page, 0x1000, AMD) is None


@pytest.mark.parametrize("name", XEN_PAGES)
def test_the_page_is_that_of_the_hosts_maker_afterwards(name: str) -> None:
    """There and back it is the same, byte for byte, and only the calls differ between."""
    page = XEN_PAGES[name]
    for maker, other, call in ((AMD, INTEL, VMMCALL), (INTEL, AMD, VMCALL)):
        there = changed(page, maker)
        calls = recognise(there)
        assert calls is not None
        assert calls.instruction == call
        assert changes(there, 0, maker) == []
        assert changed(there, other) == changed(page, other)
    assert len([a for a, b in zip(page, changed(page, AMD), strict=True) if a != b]) in {
        0,
        127,
        128,
    }


def changed(page: bytes, maker: str) -> bytes:
    new = bytearray(page)
    for change in changes(page, 0x7000, maker) or ():
        at = change.address - 0x7000
        assert page[at : at + 3] == change.before
        new[at : at + 3] = change.after
    return bytes(new)


class Kernel:
    """As much of an image as is asked for."""

    BASE = 0xFFFF_FFFF_8100_0400

    def __init__(self, text: bytes) -> None:
        self._text = text

    def section(self, name: str) -> Section:
        assert name == ".text"
        return Section(
            name=name, address=self.BASE, offset=0, size=len(self._text), code=True, stored=True
        )

    def content(self, _section: Section) -> bytes:
        return self._text


@pytest.mark.parametrize("placeholder", [b"\xc3" + b"\xcc" * 31, b"\x90" * 31 + b"\xc3", bytes(32)])
def test_linux_keeps_its_page_where_the_image_has_room_for_it(placeholder: bytes) -> None:
    """On a page's beginning, whole, and nowhere else."""
    page = placeholder * 128
    text = b"\x55" * 0xC00 + page + b"\x55" * 0x1010 + page + b"\x55" * 0x1000
    assert list(placeholders(Kernel(text))) == [Kernel.BASE + 0xC00]
