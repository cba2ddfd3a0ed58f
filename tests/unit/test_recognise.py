"""Any dump is recognised by its content; libvirt's XML is read, however hostile."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.cpu.model import CpuModel
from isthmus.cpu.named import qemu_models
from isthmus.cpu.readers.libvirt import read_cpudata
from isthmus.cpu.readers.recognise import read_cpu, recognise
from isthmus.errors import InputError
from isthmus.values import from_json, to_json

CPUDATA = b"""\
<!-- a Penryn -->
<cpudata arch='x86'>
  <cpuid eax_in='0x00000000' ecx_in='0x00' eax='0x0000000d' ebx='0x756e6547' ecx='0x6c65746e'
    edx='0x49656e69'/>
  <cpuid eax_in='0x00000001' eax='0x0001067a' ebx='0x00040800' ecx='0x0008e3fd' edx='0xbfebfbff'/>
  <cpuid eax_in='0x00000007' ecx_in='0x00' edx='0x20000000'/>
  <msr index='0x10a' edx='0x00000000' eax='0x00000001'/>
</cpudata>
"""
RAW = b"""\
CPU 0:
   0x00000000 0x00: eax=0x0000000d ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69
   0x00000001 0x00: eax=0x0001067a ebx=0x00040800 ecx=0x0008e3fd edx=0xbfebfbff
"""
CPUINFO = b"""\
processor : 0
vendor_id : GenuineIntel
cpu family : 6
model : 23
stepping : 10
cpuid level : 13
flags : fpu ssse3 sse4_1
"""


def test_cpudata() -> None:
    cpu = read_cpudata(CPUDATA, name="penryn", where="test")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("GenuineIntel", 6, 23, 10)
    assert {"ssse3", "sse4.1", "vmx", "rdctl-no"} <= cpu.features
    assert cpu.msrs == {0x10A: 1}


def test_every_format_is_recognised(tmp_path: Path) -> None:
    own = CpuModel(
        name="x", source="t", vendor="GenuineIntel", family=6, model=23, stepping=10,
        features=frozenset({"sse4.1"}),
    )  # fmt: skip
    for data in (CPUDATA, RAW, CPUINFO, to_json(own), b"\n" + RAW.replace(b"\n", b"\r\n")):
        file = tmp_path / "dump"
        file.write_bytes(data)
        cpu = read_cpu(file)
        assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("GenuineIntel", 6, 23, 10)
        assert "sse4.1" in cpu.features


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nothing of the kind",
        b"\xff\xfe\x00",
        b"{",
        b"{}",
        b"[" * 1000,
        b'{"a":' * 50_000,
        b"<cpudata",
        b"<cpudata arch='arm'/>",
        b"<other><cpudata/></other>",
        b"<cpudata arch='x86'/>",
        CPUDATA.replace(b"0x0001067a", b"0x10001067a"),
        CPUDATA.replace(b"0x0001067a", b"penryn"),
        b"<cpudata arch='x86'>" + b"<a>" * 10_000,
    ],
)
def test_what_is_no_dump_ends_with_one_line(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        recognise(data, name="x", where="dump.txt")
    assert "dump.txt" in caught.value.message


def test_xml_entities_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0x0001067a")
    outside = f'<!DOCTYPE c [<!ENTITY e SYSTEM "{secret}">]>'.encode()
    laughs = b"<!DOCTYPE c [" + b"".join(
        b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10 if n else b"lol") for n in range(12)
    ) + b"]>"  # fmt: skip
    for attack in (
        outside + CPUDATA.replace(b"</cpudata>", b"&e;</cpudata>"),
        laughs + CPUDATA.replace(b"'0x0001067a'", b"'&a11;'"),
    ):
        try:
            cpu = read_cpudata(attack, name="x", where="dump.xml")
        except InputError:
            continue
        assert "0x0001067a" not in repr(cpu.unknown)
        assert cpu.vendor == "GenuineIntel"


@given(st.binary(max_size=400) | st.sampled_from([RAW, CPUDATA, CPUINFO]), st.data())
def test_any_bytes_give_a_model_or_an_error(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data)))
    mutated = data[:at] + draw.draw(st.binary(max_size=8)) + data[at + 1 :]
    try:
        assert recognise(mutated, name="x", where="dump").vendor
    except InputError as error:
        assert error.message.startswith("dump")


EXPANSION = b"""\
{"return": {"model": {"name": "base", "props": {
  "vendor": "GenuineIntel", "family": 6, "model": 60, "stepping": 3, "level": 13,
  "xlevel": 2147483656, "model-id": "Intel Core i7", "phys-bits": 39, "sse3": true, "sse4-2": true,
  "fpu": true, "avx2": false, "hv-time": true, "migratable": true, "kvm": true, "tsc_adjust": true
}}}, "id": "model-expansion"}

{"return": [{"name": "486"}], "id": "definitions"}
"""


def test_an_expansion_of_qemu_even_with_more_behind_it() -> None:
    cpu = recognise(EXPANSION, name="haswell", where="a file")
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == ("GenuineIntel", 6, 60, 3)
    assert cpu.features == {"pni", "sse4.2", "fpu", "tsc-adjust"}
    assert (cpu.phys_bits, cpu.brand) == (39, "Intel Core i7")


def test_a_broken_expansion_is_an_error() -> None:
    with pytest.raises(InputError, match="not a full CPU model expansion"):
        recognise(b'{"props": {"vendor": 7}}', name="x", where="a file")


def test_a_model_with_msrs_survives_its_document() -> None:
    model = qemu_models()["EPYC"].replace(msrs={0x345: 7, 0x10A: 5})
    assert from_json(to_json(model), CpuModel) == model
    assert to_json(model) == to_json(model.replace(msrs={0x10A: 5, 0x345: 7}))
