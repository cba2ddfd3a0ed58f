"""Xen's migration stream: what passes, what is rewritten, what is refused, in which words."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from isthmus.qualification.lab import xen_stream as made
from isthmus.translate.xen import transport
from isthmus.translate.xen.fault import StreamError
from isthmus.translate.xen.knowledge import Rule, by_number, records, rules, structures
from isthmus.translate.xen.report import Report, Summary
from isthmus.translate.xen.rules import Change, chosen, decide

AMD = chosen(rules(), "AuthenticAMD")


def filtered(
    data: bytes, with_rules: tuple[Rule, ...] = ()
) -> tuple[bytes, tuple[Change, ...], Summary]:
    """Filter ``data`` in memory."""
    channel, report = made.InMemory(data), Report(None)
    summary = transport.filtered(channel, with_rules, report, to="")
    return bytes(channel.out), tuple(report.changes), summary


WHOLE: dict[str, Callable[[], bytes]] = {
    "pv": made.pv_stream,
    "hvm": made.hvm_stream,
    "checkpointed": made.checkpointed_stream,
    "libxl": lambda: made.libxl(made.record(1), made.pv_image(made.some_pages()), made.record(0)),
    "libxc": lambda: made.hvm_image(made.some_pages()),
}


@pytest.mark.parametrize("name", WHOLE)
def test_without_rules_every_byte_is_as_it_came(name: str) -> None:
    data = WHOLE[name]() + made.GO
    out, changes, _ = filtered(data)
    assert out == data
    assert not changes


def test_every_record_of_the_specification_is_known() -> None:
    assert sorted(by_number("libxl")) == list(range(6))
    assert sorted(by_number("libxc")) == list(range(0x13))
    assert sorted(by_number("hvm")) == list(range(21))
    layers = (*records().libxl, *records().libxc, *records().hvm)
    assert all(record.source for record in layers)


def test_every_rule_names_a_field_that_is_known_and_its_source() -> None:
    for rule in rules():
        names = {field.name for field in structures()[rule.record].fields}
        assert rule.field in names, rule.id
        assert rule.source
        assert rule.why


def test_the_lab_s_value_becomes_what_amd_takes() -> None:
    assert decide(AMD, "X86_PV_VCPU_EXTENDED", "vmce.caps", 0x1000C02) == (2, "pv-vmce-caps")
    assert decide(AMD, "X86_PV_VCPU_EXTENDED", "vmce.caps", 0x102) == (0x102, "")
    assert not chosen(rules(), "GenuineIntel")


@pytest.mark.parametrize(("data", "record"), [
    (made.pv_stream(ext_ctl=1), "X86_PV_VCPU_EXTENDED"),
    (made.hvm_stream(ext_ctl=1), "HVM_CONTEXT.VMCE_VCPU"),
])  # fmt: skip
def test_a_guest_born_on_intel_is_rewritten_for_amd(data: bytes, record: str) -> None:
    out, changes, _ = filtered(data, AMD)
    assert len(out) == len(data)
    assert [change.instance for change in changes] == [0, 0, 1, 1]
    assert {change.record for change in changes} == {record}
    assert [(change.before, change.after) for change in changes[:2]] == [(0x1000C02, 2), (1, 0)]
    again = bytearray(out)
    for change in changes:
        width = slice(change.offset, change.offset + 8)
        assert data[width] == change.before.to_bytes(8, "little")
        assert out[width] == change.after.to_bytes(8, "little")
        again[width] = data[width]
    assert again == data, "nothing but the reported fields may differ"
    assert filtered(out, AMD)[:2] == (out, ())


def test_cpuid_faulting_is_taken_out_of_a_pv_guest_s_policy_alone() -> None:
    """Xen gives it to HVM guests on every host, and to PV guests where the processor has it."""
    data = made.pv_stream(caps=2, platform_info=1 << 31)
    out, changes, _ = filtered(data, AMD)
    [change] = changes
    assert (change.rule, change.before, change.after) == ("pv-cpuid-faulting", 1 << 31, 0)
    assert change.record == "X86_MSR_POLICY.000000ce"
    assert out == made.pv_stream(caps=2), "nothing else differs, the other MSRs neither"
    at = slice(change.offset, change.offset + 8)
    assert data[at] == (1 << 31).to_bytes(8, "little")
    hvm = made.hvm_stream(caps=2, platform_info=1 << 31)
    assert filtered(hvm, AMD)[:2] == (hvm, ())


def test_a_guest_born_on_amd_is_not_touched() -> None:
    data = made.pv_stream(caps=2)
    assert filtered(data, AMD)[:2] == (data, ())


@pytest.mark.parametrize("words", [0, 1, 3])
def test_the_shorter_record_of_an_older_xen_is_rewritten_as_far_as_it_goes(words: int) -> None:
    body = made.record(2, struct.pack("<BB6x", 8, 4)) + made.record(0x10)
    data = made.libxc(1, body, made.extended(0, made.INTEL_CAPS, words=words), made.record(0))
    _, changes, _ = filtered(data, AMD)
    assert len(changes) == (1 if words else 0)


def test_the_summary_counts_records_and_pages() -> None:
    _, _, summary = filtered(made.hvm_stream())
    assert summary.guest == "hvm"
    assert summary.xen == "4.17"
    assert summary.pages == 3
    assert summary.records["hvm.VMCE_VCPU"] == 2
    assert summary.records["libxl.EMULATOR_CONTEXT"] == 1


def test_an_unknown_optional_record_passes() -> None:
    odd = made.record(0x80000099, b"later")
    data = made.stream(made.libxc(2, odd, made.record(0)), odd)
    out, _, summary = filtered(data)
    assert out == data
    assert summary.records["optional"] == 2


def _pv(*parts: bytes, version: int = 3) -> bytes:
    info = made.record(2, struct.pack("<BB6x", 8, 4))
    return made.libxc(1, info, made.record(0x10), *parts, made.record(0), version=version)


def _hvm(*entries: bytes) -> bytes:
    return made.libxc(2, made.record(9, b"".join(entries)), made.record(0))


PAGE = bytes(made.PAGE)
WRONG = {
    "no stream": (b"GET / HTTP/1.1\r\n", "no header of xl, libxl or libxc"),
    "xl magic": (made.xl_header().replace(b"format", b"garbag"), "xl header: magic"),
    "xl order": (made.xl_header().replace(b"\4\3\2\1", b"\1\2\3\4"), "byteorder"),
    "xl flags": (made.xl_header(flags=7), "mandatory_flags 0x7"),
    "xl legacy": (made.xl_header(flags=1), "Xen 4.5 or older"),
    "xl config": (made.xl_header(b"")[:-4] + b"\xff\0\0\0", "configuration of 255 bytes"),
    "libxl version": (made.libxl(version=3), "version 3"),
    "libxl order": (made.libxl(options=1), "big-endian"),
    "libxl unknown": (made.libxl(made.record(6)), "type is not known, and mandatory"),
    "libxl empty": (made.libxl(made.record(0)), "no LIBXC_CONTEXT"),
    "libxl length": (made.libxl(made.record(1, b"12345678")), "body_length 8, expected 0"),
    "twice": (
        made.libxl(made.record(1), _pv(), made.record(1)), "LIBXC_CONTEXT: a second one"),
    "checkpoint end": (made.libxl(made.record(4)), "CHECKPOINT_END: outside"),
    "xenstore": (made.libxl(made.record(2, bytes(8) + b"a\0b\0c\0")), "no pairs"),
    "xenstore end": (made.libxl(made.record(2, bytes(8) + b"a\0b")), "no NUL"),
    "xenstore key": (made.libxl(made.record(2, bytes(8) + b"a b\0c\0")), "is no key"),
    "emulator": (made.libxl(made.record(3, struct.pack("<II", 9, 0))), "emulator_id 9"),
    "libxc id": (made.libxc(1).replace(b"XENF", b"XENG"), "libxc image header: id"),
    "libxc version": (made.libxc(1, version=4), "version 4"),
    "libxc order": (made.libxc(1, options=1), "big-endian"),
    "guest type": (made.libxc(3), "type 3"),
    "page shift": (made.libxc(1, shift=13), "page_shift 13"),
    "libxc unknown": (made.libxc(1, made.record(0x13)), "0x13: type is not known, and mandatory"),
    "of hvm": (_pv(made.hvm_context(2)), "HVM_CONTEXT: in the stream of a guest of type pv"),
    "backwards": (_pv(made.record(15, bytes(8))), "from the secondary"),
    "memory first": (made.libxc(1, made.some_pages()), "PAGE_DATA: comes before STATIC_DATA_END"),
    "no pages": (_pv(made.page_data([], bytes(8))), "count 0"),
    "page count": (_pv(made.record(1, struct.pack("<IIQ", 9, 0, 0))), "count 9"),
    "page type": (_pv(made.page_data([0, 5 << 60], PAGE)), "pfn[1]: page type 5"),
    "page bytes": (_pv(made.page_data([0, 1], PAGE)), "with 2 pages"),
    "pv info": (made.libxc(1, made.record(2, struct.pack("<BB6x", 8, 3))), "guest_width 8"),
    "frames": (_pv(made.record(3, struct.pack("<IIQ", 0, 512, 1))), "body_length 16, expected 24"),
    "frames order": (_pv(made.record(3, struct.pack("<IIQ", 9, 8, 1))), "p2m_start_pfn 0x9"),
    "basic": (_pv(made.record(4, bytes(16))), "context of 8 bytes, expected 5168"),
    "vcpu": (_pv(made.extended(9999, 2)), "vcpu_id 9999"),
    "extended": (_pv(made.record(5, made.vcpu(0, struct.pack("<II", 0, 64)))), "size 64 is more"),
    "extended long": (_pv(made.record(5, bytes(144))), "body_length 144"),
    "xsave": (_pv(made.record(6, bytes(16))), "expected at least 16"),
    "msrs": (_pv(made.record(12, bytes(16))), "a multiple of 16"),
    "shared": (_pv(made.record(7, bytes(8))), "SHARED_INFO: body_length 8, expected 4096"),
    "tsc": (_pv(made.record(8, bytes(16))), "expected 24"),
    "policy": (_pv(made.record(17, bytes(32))), "a multiple of 24"),
    "padding": (_pv(made.record(11, b"x")[:-1] + b"!"), "padding is not 0"),
    "length": (_pv(struct.pack("<II", 1, 1 << 28)), "body_length 268435456"),
    "params": (made.libxc(2, made.record(10, struct.pack("<II", 1, 0))), "count 1"),
    "hvm start": (_hvm(made.hvm_entry(3, 0, bytes(8)), bytes(24)), "HEADER is the first"),
    "hvm magic": (_hvm(made.hvm_entry(1, 0, bytes(24)), made.HVM_END), "magic 0x0"),
    "hvm end": (_hvm(made.HVM_HEADER, made.hvm_entry(3, 0, bytes(8))), "not end with END"),
    "hvm type": (_hvm(made.HVM_HEADER, made.hvm_entry(21, 0, b""), made.HVM_END), "type 21"),
    "hvm length": (
        _hvm(made.HVM_HEADER, made.hvm_entry(14, 0, bytes(8)), made.HVM_END), "expected 240"),
    "hvm over": (
        _hvm(made.HVM_HEADER, struct.pack("<HHI", 3, 0, 999)), "beyond the record's end"),
    "hvm twice": (
        _hvm(made.HVM_HEADER, made.hvm_entry(19, 0, bytes(8)) * 2, made.HVM_END), "a second one"),
    "hvm msrs": (
        _hvm(made.HVM_HEADER, made.hvm_entry(20, 0, struct.pack("<I20x", 2)), made.HVM_END),
        "count 2"),
    "hvm rest": (_hvm(made.HVM_HEADER, made.HVM_END, b"x" * 8), "bytes other than 0 follow"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_xen_would_not_take_is_refused_in_one_clear_line(name: str) -> None:
    data, words = WRONG[name]
    with pytest.raises(StreamError, match="offset 0x") as caught:
        filtered(data)
    assert words in str(caught.value)
    assert "\n" not in caught.value.message
    assert "resumes the guest" in (caught.value.remedy or "")


def test_the_message_names_the_record_s_place() -> None:
    front = made.pv_image(b"", vcpus=0)[:-8]
    with pytest.raises(StreamError) as caught:
        filtered(front + made.record(7, bytes(8)))
    assert caught.value.offset == len(front)
    assert caught.value.record == "SHARED_INFO"


def test_nothing_of_a_wrong_record_is_given_on() -> None:
    good = made.pv_image(made.some_pages())[:-8]
    channel = made.InMemory(good + made.record(0x13, b"12345678") + made.record(0))
    with pytest.raises(StreamError):
        transport.filtered(channel, (), Report(None), to="")
    assert channel.out == good
    assert channel.passed == 3 * made.PAGE, "pages, and nothing else, pass unseen"


def test_the_page_tells_every_rule_and_every_record() -> None:
    page = (Path(__file__).parents[2] / "docs" / "xen.md").read_text()
    layers = (*records().libxl, *records().libxc, *records().hvm)
    words = set(re.findall(r"[A-Z][A-Z0-9_]+", page))
    assert {record.name for record in layers} <= words
    for rule in rules():
        row = next(line for line in page.splitlines() if f"`{rule.id}`" in line)
        assert f"`{rule.keep}`" in row
        assert f"`{rule.field}`" in row
