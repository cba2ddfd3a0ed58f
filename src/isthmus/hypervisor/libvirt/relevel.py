"""Write a level into a domain's XML: its ``<cpu>``, what the level needs, and not a byte more.

Pure: a text in, a text out.  Of the old ``<cpu>`` those parts stay that are not about the CPU's
abilities: ``<topology>``, ``<numa>``, ``<cache>`` unless it passes the host's through, comments.
Between makers the paravirtual features that call the hypervisor go off in ``<features>``
(:func:`isthmus.hypervisor.libvirt.render.features_element`).  Everything else keeps its bytes.

A guest's own reboot keeps its QEMU process and so its CPU: what is written counts after the domain
was shut down and started.
"""

import difflib

from lxml import etree

from isthmus.baseline.level import Baseline
from isthmus.cpu.readers.xml import parse
from isthmus.errors import InputError
from isthmus.hypervisor.libvirt.domain import Domain, WantedCpu, read_domain
from isthmus.hypervisor.libvirt.render import Choice, cpu_element, features_element
from isthmus.hypervisor.libvirt.spans import Span, indentation, spans, spliced
from isthmus.values import Value

KINDS = frozenset({"kvm", "qemu"})
"""Types of domain whose CPU libvirt's QEMU driver shows."""
ARCHITECTURES = frozenset({"x86_64", "i686"})
Edit = tuple[int, int, bytes]
"""Where it begins and ends, and what stands there afterwards."""
_STEP = "  "
_DEPTH = 3
_BEFORE_FEATURES = ("os", "bootloader", "idmap")
_BEFORE_CPU = ("features", "os")
# Written anew from the level.
_OF_THE_LEVEL = frozenset({"model", "vendor", "feature", "maxphysaddr"})
# About the guest's layout, not about what its CPU can do.
_KEPT = ("topology", "cache", "numa")


class Relevelled(Value, frozen=True):
    """A domain before and after: ``changed`` tells whether anything is to be written at all.

    ``notes`` say what the operator should know of this domain.
    """

    domain: str
    uuid: str
    before: str
    after: str
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the level was not in it already."""
        return self.before != self.after

    def difference(self, label: str = "") -> str:
        """The change as a unified diff."""
        label = label or f"{self.domain}.xml"
        return "".join(
            line if line.endswith("\n") else f"{line}\n"
            for line in difflib.unified_diff(
                self.before.splitlines(keepends=True),
                self.after.splitlines(keepends=True),
                f"{label} (as it is)",
                f"{label} (levelled)",
            )
        )


def relevel(xml: str, level: Baseline, *, where: str) -> Relevelled:
    """The domain with the level as its CPU; the same level again changes nothing.

    :raises InputError: no x86 domain of QEMU's, or XML that cannot be read.
    """
    data = xml.encode()
    domain = read_domain(data, where=where)
    _require_fit(domain, where)
    level = movable(level, domain)
    found = spans(data, depth=_DEPTH, where=where)
    cpu = _one(found, ("cpu",), where)
    features = _one(found, ("features",), where)
    edits = []
    new_cpu = _cpu_text(data, found, cpu, level)
    if domain.cpu != _wanted(new_cpu) or _kept(data, found) != _kept_of(new_cpu):
        edits.append(_placed(data, found, cpu, new_cpu, _BEFORE_CPU, where))
    if level.mixed:
        edits += _switched_off(data, found, features, level, where)
    return Relevelled(
        domain=domain.name,
        uuid=domain.uuid,
        before=xml,
        after=spliced(data, _joined(edits)).decode(),
        notes=tuple(_notes(domain, found)),
    )


def movable(level: Baseline, domain: Domain) -> Baseline:
    """The level without what would keep the domain from moving, though every host has it.

    A steady TSC is that: libvirt moves no guest that was promised one, unless its rate is stated
    (the rule ``libvirt-steady-tsc``).
    """
    if any(timer.name == "tsc" and timer.frequency for timer in domain.timers):
        return level
    return level.replace(model=level.model.replace(features=level.model.features - {"invtsc"}))


def same_but_for_level(one: str, other: str, *, where: str) -> bool:
    """Whether two domains differ at most in what :func:`relevel` may write."""
    return _rest(one.encode(), where) == _rest(other.encode(), where)


def holds_level(xml: str, level: Baseline, *, where: str) -> bool:
    """Whether nothing has to be written for the level to be in the domain."""
    return not relevel(xml, level, where=where).changed


def _require_fit(domain: Domain, where: str) -> None:
    if domain.kind not in KINDS:
        raise InputError(
            f"{where}: a domain of type {domain.kind or 'unknown'}, not of QEMU or KVM",
            remedy="level it with its own platform: isthmus level --for PLATFORM",
        )
    if domain.arch not in ARCHITECTURES:
        raise InputError(
            f"{where}: a domain for {domain.arch or 'an unknown architecture'}, not for x86",
            remedy="leave it out",
        )


def _one(found: tuple[Span, ...], path: tuple[str, ...], where: str) -> Span | None:
    """The element of that path; libvirt reads the first of several, and so would nobody else."""
    hits = [span for span in found if span.path == path]
    if len(hits) > 1:
        raise InputError(f"{where}: {len(hits)} <{path[-1]}> elements", remedy="leave one")
    return hits[0] if hits else None


def _cpu_text(
    data: bytes, found: tuple[Span, ...], old: Span | None, level: Baseline
) -> etree._Element:
    """The new element, with the kept parts of the old one, not yet laid out."""
    cpu = parse(cpu_element(level, Choice(level.model)).encode(), where="the level")
    if old is None:
        return cpu
    comments = [span for span in found if span.path == ("cpu", "#comment")]
    for at, span in enumerate(comments):
        cpu.insert(at, etree.Comment(data[span.start + 4 : span.end - 3].decode()))
    for part in _parts(data, found):
        if part.tag == "maxphysaddr":
            if cpu.find("maxphysaddr") is None:
                cpu.insert(_behind(cpu, "model", "topology", "cache"), part)
        elif part.tag == "numa":
            cpu.append(part)
        else:
            cpu.insert(_behind(cpu, "model", "topology"), part)
    return cpu


def _parts(data: bytes, found: tuple[Span, ...]) -> list[etree._Element]:
    """What stays of the old element, in libvirt's own order."""
    parts = []
    for name in (*_KEPT, "maxphysaddr"):
        for span in found:
            if span.path == ("cpu", name):
                part = parse(data[span.start : span.end], where="the domain's <cpu>")
                if _stays(part):
                    parts.append(part)
    return parts


def _stays(part: etree._Element) -> bool:
    """Whether a part of the old element means the same on every host."""
    # Both of these show the host's own.
    return part.tag not in {"cache", "maxphysaddr"} or part.get("mode") != "passthrough"


def _behind(cpu: etree._Element, *names: str) -> int:
    """The place behind the last child of one of these names."""
    return 1 + max(
        (
            at
            for at, child in enumerate(cpu)
            if child.tag in names or not isinstance(child.tag, str)
        ),
        default=-1,
    )


def _comment(element: etree._Element) -> bool:
    return not isinstance(element.tag, str)


def _wanted(cpu: etree._Element) -> WantedCpu:
    """How :mod:`isthmus.hypervisor.libvirt.domain` reads the new element."""
    document = b"<domain><name>x</name>" + etree.tostring(cpu) + b"</domain>"
    return read_domain(document, where="the level").cpu


def _kept(data: bytes, found: tuple[Span, ...]) -> list[bytes]:
    return [_canonical(part) for part in _parts(data, found) if part.tag in _KEPT]


def _kept_of(cpu: etree._Element) -> list[bytes]:
    return [_canonical(part) for name in _KEPT for part in cpu.iterchildren(name)]


def _placed(
    data: bytes,
    found: tuple[Span, ...],
    old: Span | None,
    new: etree._Element,
    behind: tuple[str, ...],
    where: str,
) -> Edit:
    """The edit that puts ``new`` in the place of ``old``, or behind one of the named elements."""
    if old is not None:
        return old.start, old.end, _laid_out(new, indentation(data, old.start))
    anchor = next(
        (span for name in behind for span in found if span.path == (name,)), None
    ) or next((span for span in found if span.path == ("name",)), None)
    if anchor is None:
        raise InputError(f"{where}: a domain without a name", remedy="virsh dumpxml DOMAIN")
    margin = indentation(data, anchor.start)
    return anchor.end, anchor.end, b"\n" + margin.encode() + _laid_out(new, margin)


def _laid_out(element: etree._Element, margin: str) -> bytes:
    """An element in lines, its first where the cursor is, the others behind ``margin``."""
    etree.indent(element, _STEP)
    element.tail = None
    text = etree.tostring(element, encoding="unicode")
    return _quoted_as_libvirt(text).replace("\n", f"\n{margin}").encode()


def _quoted_as_libvirt(text: str) -> str:
    """The serialiser's double quotes as the single ones that libvirt writes, where that is safe."""
    return text.replace('"', "'") if "'" not in text and "&quot;" not in text else text


def _switched_off(
    data: bytes, found: tuple[Span, ...], features: Span | None, level: Baseline, where: str
) -> list[Edit]:
    """The edits that bring what the level needs into ``<features>``."""
    wanted = parse(features_element(level).encode(), where="the level")
    if features is None:
        return [_placed(data, found, None, wanted, _BEFORE_FEATURES, where)] if len(wanted) else []
    if features.empty:
        return [_placed(data, found, features, wanted, (), where)] if len(wanted) else []
    edits = []
    for child in wanted:
        inner = list(child)
        path = ("features", str(child.tag))
        old = _one(found, path, where)
        if old is None:
            edits.append(_inside(data, features, child))
        elif not inner:
            edits += _replaced(data, old, child)
        elif old.empty:
            edits.append(_placed(data, found, old, child, (), where))
        else:
            for leaf in inner:
                deeper = _one(found, (*path, str(leaf.tag)), where)
                edits += (
                    [_inside(data, old, leaf)] if deeper is None else _replaced(data, deeper, leaf)
                )
    return edits


def _replaced(data: bytes, old: Span, new: etree._Element) -> list[Edit]:
    element = parse(data[old.start : old.end], where="the domain's <features>")
    if sorted(element.items()) == sorted(new.items()):
        return []
    return [(old.start, old.end, _laid_out(new, indentation(data, old.start)))]


def _inside(data: bytes, parent: Span, new: etree._Element) -> Edit:
    """The edit that makes ``new`` the last child of an element that has content."""
    margin = indentation(data, parent.start)
    if b"\n" not in data[parent.start : parent.end] and not data[: parent.start].endswith(
        (b"\n", b"\n" + margin.encode())
    ):
        return parent.close, parent.close, _laid_out(new, "")  # all in one line, as it was
    last = len(data[parent.inner : parent.close].rstrip()) + parent.inner
    text = f"\n{margin}{_STEP}".encode() + _laid_out(new, margin + _STEP)
    # Where the end tag stands in the line of what is before it, it gets a line of its own.
    closing = b"" if b"\n" in data[last : parent.close] else f"\n{margin}".encode()
    return last, last, text + closing


def _joined(edits: list[Edit]) -> list[Edit]:
    """Edits at one place as one, in the order in which they were made."""
    joined: dict[tuple[int, int], bytes] = {}
    for start, end, new in edits:
        place = start, end
        joined[place] = joined.get(place, b"") + new
    return [(start, end, new) for (start, end), new in joined.items()]


def _notes(domain: Domain, found: tuple[Span, ...]) -> list[str]:
    notes = []
    cpu = domain.cpu
    if cpu.mode in {"host-passthrough", "host-model", "maximum"}:
        notes.append(f"its CPU is the host's own so far (mode {cpu.mode}), and becomes the pool's")
    if cpu.cache_mode == "passthrough":
        notes.append("the caches of the host are no longer shown: they differ between hosts")
    children = dict.fromkeys(span.path[1] for span in found if _child_of(span, "cpu"))
    known = {*_OF_THE_LEVEL, *_KEPT, "#comment"}
    lost = [name for name in children if name not in known]
    if lost:
        notes.append(f"of its <cpu> goes what a level does not state: {', '.join(lost)}")
    if any(argument.startswith("-cpu") for argument in domain.arguments):
        notes.append("its <qemu:commandline> has a -cpu, which overrides all of this: remove it")
    return notes


def _child_of(span: Span, name: str) -> bool:
    return len(span.path) == 2 and span.path[0] == name


def _rest(data: bytes, where: str) -> bytes:
    """A domain in canonical form without what a level writes."""
    root = parse(data, where=where)
    for path in ("cpu", "features/pvspinlock", "features/kvm/pv-ipi"):
        for element in root.findall(path):
            _remove(element)
    for path in ("features/kvm", "features"):
        for element in root.findall(path):
            if not len(element) and not element.attrib:
                _remove(element)
    return _canonical(root)


def _remove(element: etree._Element) -> None:
    parent = element.getparent()
    assert parent is not None
    parent.remove(element)


def _canonical(element: etree._Element) -> bytes:
    """C14N without the white space between elements."""
    copy = etree.fromstring(
        etree.tostring(element, with_tail=False), etree.XMLParser(remove_blank_text=True)
    )
    return etree.tostring(copy, method="c14n")
