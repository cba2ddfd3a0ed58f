"""CPUs as libvirt describes them: a named model and features.

Four documents hold such an element: a host's ``<capabilities>``, a hypervisor's
``<domainCapabilities>`` (its ``host-model`` is what a guest can be shown there), a ``<domain>``,
and ``<cpu>`` alone (libvirt ``docs/formatcaps.rst``, ``docs/formatdomaincaps.rst``,
``docs/formatdomain.rst``).  The model's features come from libvirt's own map
(:mod:`isthmus.cpu.named`).
"""

from lxml import etree

from isthmus.cpu.features import FEATURES, find
from isthmus.cpu.model import NO_LEAVES, CpuModel
from isthmus.cpu.named import VENDORS, libvirt_models, qemu_models
from isthmus.cpu.readers.xml import parse
from isthmus.errors import InputError

_ROOTS = frozenset({"capabilities", "domainCapabilities", "domain", "cpu"})
_REMEDY = "name a host's capabilities, domain capabilities, a domain or its cpu element"
_UNKNOWN = ("raw CPUID leaves", "XSAVE layout", NO_LEAVES)
_SHOWN = frozenset({"force", "require", None})
_MAX_NAME = 64


def is_libvirt(data: bytes) -> bool:
    """Whether the bytes look like one of these documents."""
    head = data[:65536].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<") and any(f"<{name}".encode() in head for name in _ROOTS)


def read_libvirt(data: bytes, *, name: str, where: str) -> CpuModel:
    """The CPU of such a document.

    :raises InputError: another document, no model, or one that libvirt's map does not have.
    """
    root = parse(data, where=where)
    if root.tag not in _ROOTS:
        raise InputError(f"{where}: a {str(root.tag)[:40]} document", remedy=_REMEDY)
    cpu = _cpu(root, where)
    base_name = (cpu.findtext("model") or "").strip()
    # Since 11 libvirt has QEMU's versioned models as well (EPYC-Rome-v2), made from QEMU's own
    # table (libvirt src/cpu_map/sync_qemu_models_i386.py).
    base = libvirt_models().get(base_name) or qemu_models().get(base_name)
    if base is None:
        mode = (cpu.get("mode") or "none")[:_MAX_NAME]
        told = f"model {base_name[:_MAX_NAME]!r} is not in libvirt's map"
        raise InputError(
            f"{where}: {told if base_name else f'no model in its CPU (mode {mode})'}",
            remedy="ask the host: virsh domcapabilities, or virsh domxml-to-native",
        )
    features, strange = _features(cpu, base)
    signature = cpu.find("signature")
    model = cpu.find("model")
    vendor = (model.get("vendor_id") if model is not None else None) or VENDORS.get(
        (cpu.findtext("vendor") or "").strip(), base.vendor
    )
    unknown = list(_UNKNOWN)
    if strange:
        unknown.append(f"features that are not in our catalogue: {', '.join(strange[:20])}")
    if not vendor:
        unknown.append("vendor")
    microcode, counter, width = cpu.find("microcode"), cpu.find("counter"), cpu.find("maxphysaddr")
    hertz = _number(counter, "frequency", where)
    return CpuModel(
        name=name,
        source=where,
        vendor=vendor[:12],
        family=_number(signature, "family", where) or base.family,
        model=_number(signature, "model", where) or base.model,
        stepping=_number(signature, "stepping", where),
        features=features,
        phys_bits=_number(width, "bits", where) or None,
        tsc_khz=hertz // 1000 or None,
        microcode=_number(microcode, "version", where) or None,
        unknown=tuple(unknown),
    )


def _cpu(root: etree._Element, where: str) -> etree._Element:
    if root.tag == "cpu":
        return root
    if root.tag == "domainCapabilities":
        found = root.find("cpu/mode[@name='host-model']")
    else:
        found = root.find("host/cpu" if root.tag == "capabilities" else "cpu")
    if found is None or (root.tag == "domainCapabilities" and found.find("model") is None):
        raise InputError(f"{where}: no CPU with a model in it", remedy=_REMEDY)
    return found


def _features(cpu: etree._Element, base: CpuModel) -> tuple[frozenset[str], list[str]]:
    features = set(base.features)
    strange = []
    for element in cpu.iterchildren("feature"):
        spelled = (element.get("name") or "")[:_MAX_NAME]
        try:
            feature = find(spelled).name
        except InputError:
            strange.append(spelled)
            continue
        if element.get("policy") in _SHOWN:
            features.add(feature)
        else:
            features.discard(feature)
    return frozenset(name for name in features if name in FEATURES), strange


def _number(element: etree._Element | None, attribute: str, where: str) -> int:
    """An attribute's number; 0 where it is not given."""
    if element is None or element.get(attribute) is None:
        return 0
    text = str(element.get(attribute))
    try:
        number = int(text) if len(text) <= 20 else -1
    except ValueError:
        number = -1
    if number < 0:
        raise InputError(
            f"{where}: line {element.sourceline}: {attribute} {text[:20]!r} is no number",
            remedy="mend the file",
        )
    return number
