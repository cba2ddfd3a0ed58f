"""The domain that receives a guest by hand: another CPU, our arguments, and the way back."""

from pathlib import Path

import pytest
from lxml import etree

from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.incoming import QEMU, hop_of, incoming_xml, settled_xml

BORN = b"""\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>g</name>
  <metadata><note xmlns='urn:somebody:else'>kept</note></metadata>
  <cpu mode='custom' match='exact' check='full'>
    <model fallback='forbid'>Opteron_G3</model>
    <vendor>AMD</vendor>
    <feature policy='require' name='3dnow'/>
  </cpu>
  <qemu:commandline><qemu:arg value='-no-hpet'/></qemu:commandline>
</domain>
"""
DAMAGED = b"""\
<domain><cpu><model>qemu64</model></cpu>
<metadata><i:hop xmlns:i='urn:isthmus:libvirt:1' folder='x'/></metadata></domain>
"""
MISSING = frozenset({"sse4a", "3dnow"})


def incoming(xml: bytes, folder: str, without: frozenset[str]) -> bytes:
    return incoming_xml(
        xml, without=without, vendor="AuthenticAMD", folder=Path(folder), translated=bool(without)
    ).encode()


def words(xml: bytes) -> list[str | None]:
    return [word.get("value") for word in etree.fromstring(xml).iter(f"{{{QEMU}}}arg")]


def test_the_destinations_cpu_lacks_what_its_host_lacks_and_keeps_its_maker() -> None:
    shown = read_libvirt(BORN, name="g", where="g").features
    there = read_libvirt(incoming(BORN, "/r/1", MISSING), name="g", where="g")
    assert there.features == shown - MISSING
    assert there.vendor == "AuthenticAMD"
    cpu = etree.fromstring(incoming(BORN, "/r/1", MISSING)).find("cpu")
    assert cpu is not None
    # libvirt would demand the maker of the host, and would look at the features once more.
    assert cpu.find("vendor") is None
    assert cpu.get("check") == "none"


def test_the_guest_remembers_its_birth_over_several_hops() -> None:
    xml = BORN
    for number in range(4):
        xml = incoming(xml, f"/r/{number}", MISSING if number % 2 == 0 else frozenset())
        hop = hop_of(xml)
        assert hop is not None
        assert hop.folder == Path(f"/r/{number}")
        assert hop.translated is (number % 2 == 0)
        born = read_libvirt(hop.born, name="g", where="g")
        assert born.features == read_libvirt(BORN, name="g", where="g").features
    assert read_libvirt(xml, name="g", where="g").features >= MISSING


def test_only_the_last_hops_arguments_stand_beside_the_operators() -> None:
    once = words(incoming(BORN, "/r/1", MISSING))
    twice = words(incoming(incoming(BORN, "/r/0", MISSING), "/r/1", frozenset()))
    assert once[0] == "-no-hpet"
    assert once[-2:] == ["-incoming", "defer"]
    assert twice == once


def test_its_definition_has_none_of_our_arguments() -> None:
    there = incoming(BORN, "/r/1", MISSING)
    assert words(settled_xml(there, b"").encode()) == ["-no-hpet"]
    assert settled_xml(there, BORN) == settled_xml(BORN, b"")


def test_others_metadata_is_kept() -> None:
    root = etree.fromstring(incoming(incoming(BORN, "/r/1", MISSING), "/r/2", MISSING))
    assert root.findtext("metadata/{urn:somebody:else}note") == "kept"
    assert len(root.findall("metadata/*")) == 2


def test_a_comma_in_the_folder_stays_one_word_for_qemu() -> None:
    assert "path=/r,,x/1/gdb.sock" in str(words(incoming(BORN, "/r,x/1", MISSING)))


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (b"<domain type='qemu'/>", "no CPU model"),
        (b"<domain><cpu mode='host-passthrough'/></domain>", "no CPU model"),
        (
            DAMAGED,
            "damaged",
        ),
        (b"not xml", "."),
    ],
)
def test_what_cannot_be_used_is_bad_input(xml: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        incoming(xml, "/r/1", MISSING)
