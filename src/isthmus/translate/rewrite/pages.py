"""Hypercall pages: code that the hypervisor has written into the guest, for the CPU it runs on.

A guest asks for such a page once, by writing its address to a model-specific register, and calls
into it for ever.  The instruction in it is the host's: VMCALL on Intel, VMMCALL on AMD.  After a
move to the other maker's host each call is a #UD.  The formats are documented, entry by entry
(``data/rewrites.json``, ``pages``); a page is touched only if *all* of it is of one of them.

What is rewritten is the three-byte instruction alone.  No instruction begins inside it, so nobody
can have been interrupted there.

Where the page lies: Linux keeps Xen's in its own text, where the image has a placeholder (until
the fix of XSA-466 took it out, 2024-12); of others whoever gives the order has to name the physical
address, since QEMU's debug stub shows no such register.
"""

from collections.abc import Iterator

from isthmus.translate.paging import PAGE
from isthmus.translate.rewrite.image import Elf
from isthmus.translate.rewrite.knowledge import HypercallPage, knowledge
from isthmus.translate.rewrite.plan import Change
from isthmus.values import Value

VMCALL, VMMCALL = bytes.fromhex("0f01c1"), bytes.fromhex("0f01d9")
_RET, _UD2 = b"\xc3", b"\x0f\x0b"

# What Linux has at that place in its image, 128 times: RET and INT3 (5.19), 31 NOPs and RET (5.12),
# zeroes (arch/x86/xen/xen-head.S, hypercall_page).
_PLACEHOLDERS = (_RET + b"\xcc" * 31, b"\x90" * 31 + _RET, bytes(32))


class Calls(Value, frozen=True):
    """A page that was recognised: whose, the instruction in it, and where in the page that is."""

    name: str
    instruction: bytes
    offsets: tuple[int, ...]


def recognise(page: bytes) -> Calls | None:
    """The calls in a page of a documented format; None if it is none, or mixes instructions."""
    for form in knowledge().pages:
        for instruction in (VMCALL, VMMCALL):
            offsets = _offsets(form, page, instruction)
            if offsets:
                return Calls(name=form.name, instruction=instruction, offsets=offsets)
    return None


def changes(page: bytes, address: int, maker: str) -> list[Change] | None:
    """What makes the page at ``address`` one of a host of ``maker``; None if it is no such page."""
    found = recognise(page)
    if found is None:
        return None
    rule = next(one for one in knowledge().makers if one.name == "vmmcall")
    wanted = VMMCALL if maker in rule.makers else VMCALL
    if wanted == found.instruction:
        return []
    return [
        Change(
            address=address + at, before=found.instruction, after=wanted, why=f"{found.name} page"
        )
        for at in found.offsets
    ]


def placeholders(elf: Elf) -> Iterator[int]:
    """Linear addresses in the image's text where Linux keeps room for Xen's page.

    A page of zeroes may be mere padding: what stands there in the guest decides.
    """
    text = elf.section(".text")
    if text is None:
        return
    content = elf.content(text)
    whole = {one * (PAGE // len(one)) for one in _PLACEHOLDERS}
    for at in range(-text.address % PAGE, len(content) - PAGE + 1, PAGE):
        if content[at : at + PAGE] in whole:
            yield text.address + at


def _offsets(form: HypercallPage, page: bytes, instruction: bytes) -> tuple[int, ...]:
    """Where the instruction stands in a page of this form; empty if the page is none."""
    if len(page) != PAGE or form.entry_bytes * form.entries > PAGE:
        return ()
    found = []
    paddings: set[int] = set()
    for number in range(form.entries):
        start = number * form.entry_bytes
        entry = page[start : start + form.entry_bytes]
        code = next(
            (
                begin
                for begin in form.beginnings(number)
                if entry.startswith(begin + instruction + _RET)
            ),
            None,
        )
        if number in form.without and entry.startswith(_UD2):
            # Alone, or written over an entry like the others, whose call nobody reaches: it is
            # rewritten like them, so that the page stays one of the format.
            begin, rest = form.beginnings(number)[0], entry[len(_UD2) :]
            old = (begin + instruction + _RET)[len(_UD2) :]
            if rest.startswith(old):
                found.append(start + len(begin))
            paddings.update(rest.removeprefix(old))
            continue
        if code is None:
            return ()
        found.append(start + len(code))
        paddings.update(entry[len(code + instruction + _RET) :])
    # The rest of a page that has none is the guest's own affair.
    if form.padding and not (len(paddings) == 1 and paddings <= set(form.padding)):
        return ()
    return tuple(found)
