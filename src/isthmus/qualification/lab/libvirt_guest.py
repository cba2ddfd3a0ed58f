"""A lab guest as a libvirt domain: the image and the payload of the lab, on a host of the lab.

Console and payload are written to plain files outside both hosts, opened by appending on each
(``append='on'``; libvirt: docs/formatdomain.rst, "Device logfile" and "Domain logfile"), so a
guest's reports are one stream, whichever host it is on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lxml import etree

from isthmus.baseline.level import level
from isthmus.cpu.model import CpuModel
from isthmus.cpu.readers.libvirt_cpu import read_libvirt
from isthmus.hypervisor.libvirt.connection import call, session
from isthmus.hypervisor.libvirt.render import Choice, cpu_element
from isthmus.hypervisor.qemu.binary import find_qemu, versioned_pc_machine
from isthmus.qualification.lab.agent import PORT
from isthmus.qualification.lab.image import GuestImage, command_line
from isthmus.qualification.lab.libvirt_host import LibvirtHost
from isthmus.values import Value

HOST_MODEL = "<cpu mode='host-model'/>"
"""All that the host offers: the guest is not levelled."""


class LabDomain(Value, frozen=True):
    """One lab guest: its name and UUID, and where its console and its payload write."""

    name: str
    uuid: str
    console: Path
    payload: Path


class Drive(Value, frozen=True):
    """A disk: an image that both hosts see at the same path, and its format as QEMU names it."""

    path: Path
    format: str = "raw"


def domain_xml(
    domain: LabDomain,
    image: GuestImage,
    *,
    cpu: str,
    words: str,
    machine: str,
    memory_mib: int = 256,
    vcpus: int = 1,
    disk: Drive | None = None,
    agent: bool = False,
) -> str:
    """The domain's XML.

    :param cpu: the ``<cpu>`` element.
    :param words: the kernel's command line.
    :param machine: QEMU's versioned machine type.
    :param agent: it has a port for a guest agent.
    """
    root = etree.Element("domain", type="qemu")
    _text(root, "name", domain.name)
    _text(root, "uuid", domain.uuid)
    _text(root, "memory", str(memory_mib), unit="MiB")
    _text(root, "vcpu", str(vcpus))
    system = etree.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=machine)
    _text(system, "kernel", str(image.kernel))
    _text(system, "initrd", str(image.initrd))
    _text(system, "cmdline", words)
    etree.SubElement(etree.SubElement(root, "features"), "acpi")
    root.append(etree.fromstring(cpu))
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "destroy")
    _text(root, "on_crash", "destroy")
    devices = etree.SubElement(root, "devices")
    etree.SubElement(devices, "controller", type="usb", model="none")
    etree.SubElement(devices, "memballoon", model="none")
    serial = etree.SubElement(devices, "serial", type="file")
    etree.SubElement(serial, "source", path=str(domain.console), append="on")
    channel = etree.SubElement(devices, "channel", type="file")
    etree.SubElement(channel, "source", path=str(domain.payload), append="on")
    etree.SubElement(channel, "target", type="virtio", name="org.isthmus.payload")
    if agent:
        port = etree.SubElement(devices, "channel", type="unix")
        etree.SubElement(port, "target", type="virtio", name=PORT)
    if disk is not None:
        drive = etree.SubElement(devices, "disk", type="file", device="disk")
        etree.SubElement(drive, "driver", name="qemu", type=disk.format, cache="none")
        etree.SubElement(drive, "source", file=str(disk.path))
        etree.SubElement(drive, "target", dev="vda", bus="virtio")
    return etree.tostring(root, pretty_print=True, encoding="unicode")


async def start(
    name: str,
    host: LibvirtHost,
    image: GuestImage,
    *,
    level_with: Sequence[LibvirtHost],
    identity: str,
    folder: Path,
    memory_mib: int = 256,
    options: Mapping[str, object] | None = None,
    disk: Drive | None = None,
    agent: bool = False,
    persistent: bool = False,
) -> LabDomain:
    """Start a guest on ``host``.

    :param level_with: the hosts that it is levelled for; none: it is shown all that its host has.
    :param folder: where its console and its reports go.
    :param agent: it has a port for a guest agent; the image has to bring one.
    :param persistent: it has a definition, and does not vanish when it ends.
    :raises HypervisorError: libvirt refuses.
    """
    domain = LabDomain(
        name=name,
        uuid=identity,
        console=folder / f"{name}.console",
        payload=folder / f"{name}.payload",
    )
    for report in (domain.console, domain.payload):
        report.unlink(missing_ok=True)
    cpu = HOST_MODEL
    if level_with:
        pool = level([await offer(one) for one in level_with])
        cpu = cpu_element(pool, Choice(pool.model))
    xml = domain_xml(
        domain,
        image,
        cpu=cpu,
        words=command_line(options),
        machine=versioned_pc_machine(find_qemu()),
        memory_mib=memory_mib,
        disk=disk,
        agent=agent,
    )
    async with session(host.uri) as connection:
        if persistent:
            defined = await call(connection.handle.defineXML, xml)
            await call(defined.create)
        else:
            await call(connection.handle.createXML, xml, 0)
    return domain


async def offer(host: LibvirtHost) -> CpuModel:
    """What libvirt says that a host can show its guests."""
    async with session(host.uri) as connection:
        text = await call(connection.handle.getDomainCapabilities, None, "x86_64", None, "qemu", 0)
    return read_libvirt(text.encode(), name=host.name, where=host.uri)


def _text(parent: etree._Element, tag: str, text: str, **attributes: str) -> None:
    etree.SubElement(parent, tag, attributes).text = text
