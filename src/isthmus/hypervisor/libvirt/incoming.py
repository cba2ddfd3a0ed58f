"""The XML of a domain that receives a guest by hand: libvirt starts it, Isthmus fills it.

libvirt moves no guest to a host that lacks some of its features, whatever its XML says: the CPU is
part of its ABI check, and it looks again after the start.  So where instructions are translated the
destination is a new domain of the same machine whose CPU lacks them, and whose QEMU waits for a
stream (libvirt: docs/drvqemu.rst, "Pass-through of QEMU command-line arguments").

The guest remembers in its ``<metadata>`` what CPU it was born with and where its translator's files
are, so that it can be moved again by whoever knows only libvirt.
"""

import copy
from pathlib import Path

from lxml import etree

from isthmus.cpu.features import FEATURES
from isthmus.cpu.readers.xml import parse
from isthmus.errors import InputError
from isthmus.values import Value

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
OURS = "urn:isthmus:libvirt:1"
GDB = "gdb.sock"
LOOK = "look.sock"
QMP = "qmp.sock"


class Hop(Value, frozen=True):
    """What a domain's metadata says of a move by hand: the folder of its files, its CPU at birth.

    ``translated``: its translator's files are in that folder.
    """

    folder: Path
    born: bytes
    translated: bool


def hop_of(xml: bytes) -> Hop | None:
    """What the last move by hand left in the domain's XML; None for a guest that had none."""
    root = parse(xml, where="the domain's XML")
    mark = root.find(f"metadata/{{{OURS}}}hop")
    if mark is None:
        return None
    cpu = mark.find("cpu")
    folder = mark.get("folder") or ""
    if cpu is None or not Path(folder).is_absolute():
        raise InputError("the domain's XML: its Isthmus metadata is damaged")
    return Hop(
        folder=Path(folder), born=etree.tostring(cpu), translated=mark.get("translated") == "yes"
    )


def incoming_xml(
    xml: bytes, *, without: frozenset[str], vendor: str, folder: Path, translated: bool
) -> str:
    """The XML of the domain that receives the guest.

    :param xml: of the running guest, as libvirt gives it for a move.
    :param without: features of the guest's birth that the destination lacks.
    :param vendor: the vendor that the guest was shown, as CPUID spells it.
    :param folder: where the sockets of its QEMU go.
    :raises InputError: the XML has no CPU model, or libvirt cannot name a feature to take away.
    """
    root = parse(xml, where="the domain's XML")
    hop = hop_of(xml)
    shown = root.find("cpu")
    born = etree.fromstring(hop.born) if hop is not None else copy.deepcopy(shown)
    if shown is None or born is None or born.find("model") is None:
        raise InputError("the domain's XML: no CPU model", remedy="give it one, and restart it")
    _strip(root)  # while the metadata still tells where the last hop's files are
    root.replace(shown, _reduced(born, without, vendor))
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.SubElement(root, "metadata")
    for old in metadata.findall(f"{{{OURS}}}hop"):
        metadata.remove(old)
    mark = etree.SubElement(
        metadata, f"{{{OURS}}}hop",
        {"folder": str(folder), "translated": "yes" if translated else "no"},
        nsmap={"isthmus": OURS},
    )  # fmt: skip
    born.tail = None
    mark.append(born)
    _arguments(root, folder)
    etree.cleanup_namespaces(root, keep_ns_prefixes=["qemu"])
    return etree.tostring(root, encoding="unicode")


def settled_xml(xml: bytes, definition: bytes) -> str:
    """The definition a guest keeps at its new host: as at the old, with none of our arguments."""
    root = parse(definition or xml, where="the domain's XML")
    _strip(root)
    return etree.tostring(root, encoding="unicode")


def _reduced(born: etree._Element, without: frozenset[str], vendor: str) -> etree._Element:
    cpu = copy.deepcopy(born)
    cpu.set("mode", "custom")
    cpu.set("match", "exact")
    # With "full" libvirt would refuse what is wanted here.
    cpu.set("check", "none")
    for demand in cpu.findall("vendor"):
        cpu.remove(demand)
    model = cpu.find("model")
    assert model is not None
    model.set("vendor_id", vendor)
    model.set("fallback", "forbid")
    for name in sorted(without):
        spelled = FEATURES[name].libvirt if name in FEATURES else None
        if spelled is None:
            raise InputError(f"libvirt has no name for the feature {name}")
        for old in cpu.findall("feature"):
            if old.get("name") == spelled:
                cpu.remove(old)
        etree.SubElement(cpu, "feature", policy="disable", name=spelled)
    return cpu


def _arguments(root: etree._Element, folder: Path) -> None:
    """Have QEMU wait for a stream, with a debug stub and a monitor for the translator."""
    line = root.find(f"{{{QEMU}}}commandline")
    if line is None:
        line = etree.SubElement(root, f"{{{QEMU}}}commandline", nsmap={"qemu": QEMU})
    for word in arguments(folder):
        etree.SubElement(line, f"{{{QEMU}}}arg", value=word)


def arguments(folder: Path) -> tuple[str, ...]:
    """What QEMU is told beside what libvirt tells it.

    Each trap of the translator is two events on every monitor, and libvirt writes the domain's
    status to a file for each: its own monitor may lag behind by minutes.  So there is one of ours.
    """
    gdb, look, qmp = (str(folder / name).replace(",", ",,") for name in (GDB, LOOK, QMP))
    return (
        "-chardev", f"socket,id=isthmus-gdb,path={gdb},server=on,wait=off",
        "-gdb", "chardev:isthmus-gdb",
        "-chardev", f"socket,id=isthmus-look,path={look},server=on,wait=off",
        "-mon", "chardev=isthmus-look,mode=control",
        "-chardev", f"socket,id=isthmus-qmp,path={qmp},server=on,wait=off",
        "-mon", "chardev=isthmus-qmp,mode=control",
        "-incoming", "defer",
    )  # fmt: skip


def _strip(root: etree._Element) -> None:
    """Take away the arguments of an earlier move by hand, and nothing of the operator's."""
    hop = hop_of(etree.tostring(root))
    line = root.find(f"{{{QEMU}}}commandline")
    if hop is None or line is None:
        return
    ours = list(arguments(hop.folder))
    words = line.findall(f"{{{QEMU}}}arg")
    for start in range(len(words) - len(ours) + 1):
        if [word.get("value") for word in words[start : start + len(ours)]] == ours:
            for word in words[start : start + len(ours)]:
                line.remove(word)
            break
    if len(line) == 0:
        root.remove(line)
