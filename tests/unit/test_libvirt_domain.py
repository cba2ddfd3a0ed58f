"""A domain's XML, also a hostile one, becomes a value; two hosts' documents become hosts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.domain import MAX_BYTES, MAX_ITEMS, read_domain
from isthmus.hypervisor.libvirt.host import read_host_documents

DATA = Path(__file__).parent / "data"

DOMAIN = b"""<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name><uuid>cbf41378-17d6-4844-84c1-a55e4032d437</uuid>
  <memory unit='KiB'>4194304</memory><vcpu placement='static'>4</vcpu>
  <memoryBacking><hugepages/><source type='memfd'/></memoryBacking>
  <cputune><vcpupin vcpu='0' cpuset='4'/></cputune>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
  <features>
    <hyperv><relaxed state='on'/><vapic state='off'/></hyperv>
    <kvm><hidden state='on'/></kvm><pvspinlock state='off'/>
  </features>
  <cpu mode='custom' match='exact' check='partial'>
    <model fallback='allow' vendor_id='GenuineIntel'>Skylake-Server</model>
    <vendor>Intel</vendor>
    <feature policy='require' name='invtsc'/><feature policy='disable' name='rtm'/>
    <maxphysaddr mode='emulate' bits='42'/><cache mode='passthrough'/>
  </cpu>
  <clock offset='utc'><timer name='tsc' frequency='2500000000'/><timer name='hpet' present='no'/>
  </clock>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='writeback'/>
      <source file='/srv/web.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <disk type='network' device='disk'><source protocol='rbd' name='pool/web'/>
      <target dev='vdb' bus='virtio'/><shareable/></disk>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source><address domain='0x0000' bus='0x81' slot='0x00' function='0x1'/></source></hostdev>
    <filesystem type='mount'><driver type='virtiofs'/><source dir='/srv'/><target dir='srv'/>
    </filesystem>
    <serial type='pty'><log file='/var/log/web.log' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <panic model='isa'/>
  </devices>
  <qemu:commandline><qemu:arg value='-snapshot'/><qemu:env name='A' value='b'/></qemu:commandline>
</domain>"""


def test_what_decides_about_a_move_is_read() -> None:
    domain = read_domain(DOMAIN, where="web.xml")
    assert (domain.name, domain.kind, domain.machine) == ("web", "kvm", "pc-q35-7.2")
    assert (domain.vcpus, domain.memory_mib) == (4, 4096)
    cpu = domain.cpu
    assert (cpu.mode, cpu.model, cpu.vendor_id) == ("custom", "Skylake-Server", "GenuineIntel")
    assert cpu.demands == {"invtsc"}
    assert (cpu.phys_bits, cpu.cache_mode) == (42, "passthrough")
    assert [(timer.name, timer.frequency) for timer in domain.timers] == [
        ("tsc", 2_500_000_000),
        ("hpet", None),
    ]
    vda, sda, vdb = domain.disks
    assert vda.local and vda.written and vda.cache == "writeback"
    assert not sda.written and not sda.local, "an empty drive has nothing to lose"
    assert not vdb.local and vdb.shared
    assert [(d.element, d.kind, d.subject) for d in domain.devices] == [
        ("hostdev", "pci", "0000:81:00.1"),
        ("filesystem", "mount", "srv"),
    ]
    assert domain.devices[1].driver == "virtiofs"
    assert domain.backing == ("hugepages", "memfd")
    assert domain.pinned
    assert domain.enlightenments == ("relaxed",)
    assert domain.arguments == ("-snapshot",)
    assert domain.consoles == ("/var/log/web.log",)
    assert domain.agent and domain.panic == ("isa",)


@pytest.mark.parametrize(
    ("amount", "mib"), [("unit='GiB'>2", 2048), (">65536", 64), ("unit='MB'>512", 488)]
)
def test_memory_in_any_of_libvirts_units(amount: str, mib: int) -> None:
    text = f"<domain><name>x</name><memory {amount}</memory></domain>"
    assert read_domain(text.encode(), where="x").memory_mib == mib


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "empty|no element"),
        (b"<domain><name>x</name>", "EndTag|premature|tag"),
        (b"<network><name>x</name></network>", "no domain"),
        (b"<domain/>", "without a name"),
        (b"<domain><name>x</name><vcpu>many</vcpu></domain>", "no number"),
        (b"<domain><name>x</name><memory unit='pages'>1</memory></domain>", "memory in"),
        (
            b"<domain><name>x</name><devices>"
            + b"<disk/>" * (MAX_ITEMS + 1)
            + b"</devices></domain>",
            "more than",
        ),
        (b"<domain>" + b" " * MAX_BYTES + b"</domain>", "more than"),
    ],
)
def test_another_document_is_one_line_of_error(document: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_domain(document, where="x.xml")
    assert "\n" not in str(caught.value)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not read me")
    document = (
        f"<!DOCTYPE domain [<!ENTITY x SYSTEM 'file://{secret}'>]>"
        "<domain><name>a&x;</name><uuid>u</uuid></domain>"
    ).encode()
    try:
        domain = read_domain(document, where="x")
    except InputError:
        return
    assert "read me" not in repr(domain)


def test_texts_are_cut_and_made_safe_for_a_terminal() -> None:
    document = f"<domain><name>a&#10;b{'x' * 5000}</name></domain>".encode()
    name = read_domain(document, where="x").name
    assert name.isprintable() and len(name) <= 512


@given(st.integers(0, len(DOMAIN)), st.binary(max_size=8), st.integers(0, 40))
def test_a_broken_document_never_ends_in_a_traceback(at: int, junk: bytes, less: int) -> None:
    try:
        read_domain(DOMAIN[:at] + junk + DOMAIN[at + less :], where="broken")
    except InputError as error:
        assert error.remedy


CAPABILITIES = b"""<capabilities><host><uuid>4c4c4544-0042</uuid>
  <cpu><arch>x86_64</arch><model>EPYC-Milan</model><vendor>AMD</vendor>
    <counter name='tsc' frequency='2450000000' scaling='yes'/></cpu>
  <migration_features><live/><uri_transports><uri_transport>tcp</uri_transport></uri_transports>
  </migration_features></host>
  <guest><arch name='x86_64'><emulator>/usr/bin/qemu-system-x86_64</emulator>
    <machine canonical='pc-q35-7.2'>q35</machine><machine>pc-q35-6.2</machine>
    <domain type='qemu'/><domain type='kvm'><machine>pc-i440fx-7.2</machine></domain></arch></guest>
</capabilities>"""
DOMAIN_CAPABILITIES = b"""<domainCapabilities><path>/usr/bin/qemu</path><domain>kvm</domain>
  <cpu><mode name='host-model' supported='yes'><model fallback='forbid'>EPYC-Rome</model>
      <vendor>AMD</vendor><feature policy='require' name='x2apic'/></mode>
    <mode name='custom' supported='yes'><model usable='yes'>EPYC-Rome</model>
      <model usable='no'>Skylake-Server</model></mode></cpu></domainCapabilities>"""


def test_a_host_by_its_two_documents() -> None:
    host = read_host_documents(CAPABILITIES, DOMAIN_CAPABILITIES, name="amd1")
    assert host.uuid == "4c4c4544-0042"
    assert host.machines == {"q35", "pc-q35-7.2", "pc-q35-6.2", "pc-i440fx-7.2"}
    assert host.kinds == {"qemu", "kvm"}
    assert host.models == {"EPYC-Rome": True, "Skylake-Server": False}
    assert host.silicon is not None and host.silicon.tsc_khz == 2_450_000
    # What guests can be shown goes before what the silicon has.
    assert host.cpu is not None and "x2apic" in host.cpu.features
    assert host.transports == {"tcp"} and not host.unknown


def test_the_versioned_models_of_newer_libvirts_are_qemus() -> None:
    newer = DOMAIN_CAPABILITIES.replace(b">EPYC-Rome</model>", b">EPYC-Rome-v2</model>")
    host = read_host_documents(None, newer, name="new")
    assert host.cpu is not None and not host.unknown
    assert "ibrs" in host.cpu.features, "which version 1 has not"


def test_a_host_of_a_model_that_is_not_known_says_so() -> None:
    strange = DOMAIN_CAPABILITIES.replace(
        b">EPYC-Rome</model>\n      <vendor", b">Z9</model><vendor"
    )
    host = read_host_documents(None, strange, name="new")
    assert host.cpu is None
    assert "Z9" in host.unknown[0]


def test_the_other_document_is_refused() -> None:
    with pytest.raises(InputError, match="capabilities"):
        read_host_documents(DOMAIN_CAPABILITIES, None, name="x")
