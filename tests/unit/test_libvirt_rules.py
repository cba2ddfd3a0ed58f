"""Every rule about a libvirt domain speaks where it should and is silent where it should not."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from isthmus.cpu.named import qemu_models
from isthmus.divergence.finding import Finding, Severity
from isthmus.hypervisor.libvirt.domain import Domain, read_domain
from isthmus.hypervisor.libvirt.host import LibvirtHost
from isthmus.hypervisor.libvirt.page import page
from isthmus.hypervisor.libvirt.relations import RELATIONS, Move
from isthmus.hypervisor.libvirt.rules import domain_findings, rules

FIT = """<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>web</name><os><type arch='x86_64' machine='{machine}'>hvm</type></os>{cpu}{more}
<devices><emulator>{emulator}</emulator>{devices}</devices></domain>"""
LEVELLED = "<cpu mode='custom'><model vendor_id='AuthenticAMD'>EPYC</model></cpu>"
MACHINES = frozenset({"pc-q35-7.2", "q35"})


def host(name: str, model: str, **more: object) -> LibvirtHost:
    cpu = qemu_models()[model].replace(name=name)
    return LibvirtHost(
        name=name, uuid=name, cpu=cpu, silicon=cpu.replace(tsc_khz=2_500_000), machines=MACHINES,
        emulators=frozenset({"/usr/bin/qemu"}), kinds=frozenset({"kvm", "qemu"}),
        models={"EPYC": True, "Skylake-Server": True},
    ).replace(**more)  # fmt: skip


AMD, INTEL = host("amd", "EPYC"), host("intel", "Skylake-Server")
DRIVERS = list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so"))
VIRSH = (
    shutil.which("virsh")
    and subprocess.run(["virsh", "--version"], capture_output=True, text=True, check=False).stdout
)
SAFE = Move(tls=True, tls_there=True)


def domain(
    *, cpu: str = LEVELLED, more: str = "", devices: str = "", kind: str = "kvm",
    machine: str = "pc-q35-7.2", emulator: str = "/usr/bin/qemu",
) -> Domain:  # fmt: skip
    text = FIT.format(
        kind=kind, machine=machine, cpu=cpu, more=more, devices=devices, emulator=emulator
    )
    return read_domain(text.encode(), where="test")


def disk(source: str, *, driver: str = "<driver cache='none'/>", more: str = "") -> str:
    return f"<disk type='file'>{driver}<source file='{source}'/><target dev='vda'/>{more}</disk>"


def cpu(mode: str) -> str:
    return f"<cpu mode='{mode}'/>"


PCI = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
LOCAL = disk("/var/lib/web.img")

SPEAKS: Mapping[str, tuple[Domain, LibvirtHost, LibvirtHost, Move]] = {
    "libvirt-same-host": (domain(), AMD, INTEL.replace(uuid="amd"), SAFE),
    "libvirt-host-passthrough": (domain(cpu=cpu("host-passthrough")), AMD, INTEL, SAFE),
    "libvirt-maximum": (domain(cpu=cpu("maximum")), AMD, INTEL, SAFE),
    "libvirt-host-model": (domain(cpu=cpu("host-model")), AMD, INTEL, SAFE),
    "libvirt-host-cpu-alike": (domain(cpu=cpu("host-model")), AMD, host("b", "EPYC"), SAFE),
    "libvirt-not-migratable": (
        domain(cpu="<cpu mode='host-passthrough' migratable='off'/>"), AMD, host("b", "EPYC"), SAFE,
    ),
    "libvirt-no-cpu": (domain(cpu=""), AMD, INTEL, SAFE),
    "libvirt-vendor-open": (
        domain(cpu="<cpu mode='custom'><model>EPYC</model></cpu>"), AMD, INTEL, SAFE,
    ),
    "libvirt-vendor-demanded": (
        domain(cpu=LEVELLED.replace("</cpu>", "<vendor>AMD</vendor></cpu>")), AMD, INTEL, SAFE,
    ),
    "libvirt-model-unknown": (domain(cpu=LEVELLED.replace("EPYC", "Z9")), AMD, INTEL, SAFE),
    "libvirt-steady-tsc": (
        domain(cpu=LEVELLED.replace("</cpu>", "<feature policy='require' name='invtsc'/></cpu>")),
        AMD, INTEL, SAFE,
    ),
    "libvirt-tsc-rate": (
        domain(more="<clock><timer name='tsc' frequency='2600000000'/></clock>"), AMD, INTEL, SAFE,
    ),
    "libvirt-evmcs": (
        domain(more="<features><hyperv><evmcs state='on'/></hyperv></features>"), AMD, INTEL, SAFE,
    ),
    "libvirt-machine-missing": (domain(machine="pc-q35-rhel9"), AMD, INTEL, SAFE),
    "libvirt-kind-missing": (domain(), AMD, INTEL.replace(kinds=frozenset({"qemu"})), SAFE),
    "libvirt-emulator-elsewhere": (domain(emulator="/usr/libexec/qemu-kvm"), AMD, INTEL, SAFE),
    "libvirt-older-there": (
        domain(), AMD, INTEL, SAFE.replace(libvirt_here=(11, 3, 0), libvirt_there=(9, 0, 0)),
    ),
    "libvirt-storage-local": (domain(devices=LOCAL), AMD, INTEL, SAFE),
    "libvirt-storage-device": (
        domain(devices="<disk type='block'><source dev='/dev/sdb'/><target dev='vda'/></disk>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-medium-local": (domain(devices=disk("/a.iso", more="<readonly/>")), AMD, INTEL, SAFE),
    "libvirt-cache-unsafe": (domain(devices=disk("/a", driver="")), AMD, INTEL, SAFE),
    "libvirt-disk-transient": (domain(devices=disk("/a", more="<transient/>")), AMD, INTEL, SAFE),
    "libvirt-disk-on-host-device": (
        domain(devices="<disk type='nvme'><target dev='vda'/></disk>"), AMD, INTEL, SAFE,
    ),
    "libvirt-hostdev": (
        domain(devices=f"<hostdev mode='subsystem' type='pci'><source>{PCI}</source></hostdev>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-hostdev-capabilities": (
        domain(devices="<hostdev mode='capabilities' type='misc'/>"), AMD, INTEL, SAFE,
    ),
    "libvirt-hostdev-usb": (
        domain(devices="<hostdev mode='subsystem' type='usb'/>"), AMD, INTEL, SAFE,
    ),
    "libvirt-hostdev-teamed": (
        domain(devices="<hostdev type='pci'><teaming type='transient'/></hostdev>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-interface-hostdev": (domain(devices="<interface type='hostdev'/>"), AMD, INTEL, SAFE),
    "libvirt-interface-vdpa": (domain(devices="<interface type='vdpa'/>"), AMD, INTEL, SAFE),
    "libvirt-interface-vhostuser": (
        domain(devices="<interface type='vhostuser'><source path='/s'/></interface>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-interface-there": (
        domain(devices="<interface type='bridge'><source bridge='br0'/></interface>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-shmem": (
        domain(devices="<shmem name='s'><model type='ivshmem-plain'/></shmem>"), AMD, INTEL, SAFE,
    ),
    "libvirt-virtiofs": (
        domain(devices="<filesystem type='mount'><driver type='virtiofs'/></filesystem>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-9p": (domain(devices="<filesystem type='mount'/>"), AMD, INTEL, SAFE),
    "libvirt-tpm-passthrough": (
        domain(devices="<tpm><backend type='passthrough'/></tpm>"), AMD, INTEL, SAFE,
    ),
    "libvirt-tpm-emulator": (
        domain(devices="<tpm model='tpm-tis'><backend type='emulator'/></tpm>"), AMD, INTEL, SAFE,
    ),
    "libvirt-memory-device": (
        domain(devices="<memory model='nvdimm'><source><path>/n</path></source></memory>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-hugepages": (
        domain(more="<memoryBacking><hugepages/></memoryBacking>"), AMD, INTEL, SAFE,
    ),
    "libvirt-locked": (domain(more="<memoryBacking><locked/></memoryBacking>"), AMD, INTEL, SAFE),
    "libvirt-pinned": (domain(more="<vcpu cpuset='1-3'>2</vcpu>"), AMD, INTEL, SAFE),
    "libvirt-confidential": (domain(more="<launchSecurity type='sev'/>"), AMD, INTEL, SAFE),
    "libvirt-arguments-cpu": (
        domain(more="<qemu:commandline><qemu:arg value='-cpu'/><qemu:arg value='host'/>"
                    "</qemu:commandline>"), AMD, INTEL, SAFE,
    ),
    "libvirt-arguments": (
        domain(more="<qemu:commandline><qemu:arg value='-snapshot'/></qemu:commandline>"),
        AMD, INTEL, SAFE,
    ),
    "libvirt-snapshots": (domain(), AMD, INTEL, SAFE.replace(snapshots=2)),
    "libvirt-tls-missing": (domain(), AMD, INTEL, SAFE.replace(tls_there=False)),
    "libvirt-in-clear": (domain(), AMD, INTEL, Move()),
    "libvirt-translated-in-clear": (domain(), AMD, INTEL, Move(carried="tcp")),
}  # fmt: skip
"""For each rule a domain, two hosts and a move of which it speaks."""


def spoken(case: tuple[Domain, LibvirtHost, LibvirtHost, Move]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in domain_findings(*case)}


def test_a_levelled_domain_on_shared_storage_moves_without_a_finding() -> None:
    rbd = "<disk type='network'><source protocol='rbd' name='p/web'/><target dev='vda'/></disk>"
    assert domain_findings(domain(devices=rbd), AMD, INTEL, SAFE) == ()
    assert domain_findings(domain(devices=rbd), INTEL, AMD, SAFE) == ()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.id)
def test_a_rule_speaks_of_its_case_with_all_places_filled(rule: object) -> None:
    finding = spoken(SPEAKS[rule.id])[rule.id]  # type: ignore[attr-defined]
    assert finding.sure or rule.unknown != "nothing"  # type: ignore[attr-defined]
    for text in (finding.notice, finding.remedy):
        assert text and "{" not in text and "?:" not in text


def test_every_rule_has_its_case_and_every_relation_its_rule() -> None:
    assert {rule.id for rule in rules()} == set(SPEAKS)
    assert {rule.relation for rule in rules()} == set(RELATIONS)
    assert len({rule.id for rule in rules()}) == len(rules())


def test_the_page_is_current() -> None:
    committed = Path(__file__).parents[2] / "docs" / "libvirt-rules.md"
    assert committed.read_text(encoding="utf-8") == page(), (
        "write it anew: python -m isthmus.hypervisor.libvirt.page docs/libvirt-rules.md"
    )


def test_what_is_not_known_is_not_taken_for_fine() -> None:
    dark = LibvirtHost(name="dark")
    found = spoken((domain(cpu=cpu("host-passthrough"), devices=LOCAL), AMD, dark, SAFE))
    assert found["libvirt-host-passthrough"].severity is Severity.REFUSE
    assert not found["libvirt-host-passthrough"].sure
    assert found["libvirt-machine-missing"].severity is Severity.WARN
    assert not found["libvirt-storage-local"].sure
    assert found["libvirt-storage-local"].severity is Severity.WARN, "libvirt looks itself"
    device = spoken(SPEAKS["libvirt-storage-device"])["libvirt-storage-device"]
    assert device.severity is Severity.REFUSE and not device.sure, "libvirt does not look"


@pytest.mark.parametrize(
    ("move", "silent"),
    [
        (Move(copies=frozenset({"vda"})), True),
        (Move(copies_all=True), True),
        (Move(shared=frozenset({"/var/lib"})), True),
        (Move(shared=frozenset({"/var/lib/"})), True),
        (Move(shared=frozenset({"/var/lib/web.img"})), True),
        (Move(shared=frozenset({"/var/li"})), False),
        (Move(copies=frozenset({"vdb"})), False),
    ],
)
def test_a_local_disk_that_is_copied_or_shared_is_no_obstacle(move: Move, silent: bool) -> None:
    found = spoken((domain(devices=LOCAL), AMD, INTEL, move))
    assert ("libvirt-storage-local" not in found) is silent


def test_no_path_talks_its_way_into_shared_storage() -> None:
    sly = domain(devices=disk("/shared/../var/web.img"))
    found = spoken((sly, AMD, INTEL, Move(shared=frozenset({"/shared"}))))
    assert "libvirt-storage-local" in found


def test_libvirt_copies_no_shareable_disk() -> None:
    shared = domain(devices=disk("/var/web.img", more="<shareable/>"))
    assert "libvirt-storage-local" in spoken((shared, AMD, INTEL, Move(copies_all=True)))


@pytest.mark.skipif(
    not (DRIVERS and (VIRSH and VIRSH.startswith("9."))),
    reason="no libvirt 9 with its QEMU driver here (newer ones have other words for some)",
)
def test_the_messages_stand_in_libvirt_as_quoted() -> None:
    words = DRIVERS[0].read_bytes()
    for rule in rules():
        assert rule.literal.encode() in words, rule.id
