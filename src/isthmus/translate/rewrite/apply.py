"""Rewrite a paused guest for the host it is on, or put it back as it was at home.

The order of steps is such that a crash at any instruction leaves a guest that can be mended: before
the first byte is written the disk holds an intent, with the form that each site has and the one
that it gets; each site is written by one request; and what stands there is compared with what is
written down before anything is done.  Doing it twice changes nothing.  If one site does not read
back as written, all are put back.
"""

import contextlib
from collections.abc import Iterator

from isthmus.errors import IsthmusError
from isthmus.translate.rewrite import guest
from isthmus.translate.rewrite.contexts import interrupted
from isthmus.translate.rewrite.guest import AfarError, Placed, Standing, UnknownKernelError
from isthmus.translate.rewrite.image import LIMIT, PAGE, KernelImage
from isthmus.translate.rewrite.pages import changes as page_changes
from isthmus.translate.rewrite.pages import placeholders
from isthmus.translate.rewrite.plan import (
    Change,
    Host,
    Site,
    inside,
    plan,
    resumable,
    sites,
)
from isthmus.translate.rewrite.record import (
    RewriteOrder,
    RewriteRecord,
    Written,
    read_record,
    write_record,
)
from isthmus.translate.rsp import Stub
from isthmus.values import read_bytes

SEARCH_LIMIT_MIB = 512
"""Guests with more memory are not searched for saved contexts: it would take too long."""

_MIB = 1 << 20
_STRETCH = 64 * _MIB


class Rewriter:
    """One order, with the kernel image unpacked before the guest stands still."""

    def __init__(self, order: RewriteOrder) -> None:
        self.order = order
        self.problem = ""
        self._image: KernelImage | None = None
        self._sites: tuple[Site, ...] = ()
        self._placeholders: tuple[int, ...] = ()
        try:
            if order.kernel is not None and order.features:
                self._image = KernelImage.open(read_bytes(order.kernel, limit=LIMIT))
                self._sites = _all_sites(self._image)
                self._placeholders = tuple(placeholders(self._image))
        except IsthmusError as error:
            self.problem = str(error)

    async def apply(self, stub: Stub) -> RewriteRecord:
        """Do it; the guest stands before and after.

        :returns: the new record, which also says what was not done: those sites trap.
        """
        order = self.order
        prior = RewriteRecord()
        try:
            # A record that stands here already was begun by a predecessor that was killed.
            prior = read_record(order.record if order.record.exists() else order.prior)
            return await self._apply(stub, prior)
        except (IsthmusError, OSError) as error:
            # What was known of the guest is not forgotten.
            record = RewriteRecord(entry=prior.entry, written=prior.written, problem=str(error))
            with contextlib.suppress(IsthmusError):
                if not order.record.exists():
                    write_record(order.record, record)
            return record

    async def _apply(self, stub: Stub, prior: RewriteRecord) -> RewriteRecord:
        order = self.order
        where = await guest.standing(stub)
        placed: Placed | None = None
        problem = self.problem
        if self._image is not None:
            try:
                placed = await guest.place(stub, where, self._image, order.record.parent)
            except UnknownKernelError as error:
                problem = str(error)
        known = await _known(stub, prior, where)
        wanted: dict[int, Written] = {}
        if placed is not None:
            for change in await self._changes(stub, placed, known):
                address = change.address + placed.slide
                wanted[address] = _written(change, address, placed.place(change.address))
        strange = 0
        for address, physical in self._pages(placed):
            found = await self._page_changes(stub, address, physical, known)
            # A placeholder that is one still: no hypervisor has ever written there.
            strange += found is None and address == physical
            for change in found or ():
                place = physical + change.address - address
                wanted[change.address] = _written(change, change.address, place)
        work = _Work(known, wanted)
        left = work.settle(where, await self._contexts(stub, work))
        if strange:
            left["hypercall page: of no documented form"] = strange
        record = RewriteRecord(
            entry=where.entry,
            written=tuple(work.outcome()),
            restored=work.restored,
            left=left,
            problem=problem,
        )
        if work.steps:
            stands = [known[one.address] for one, _, _ in work.steps if one.address in known]
            intent = (*record.written, *stands)
            write_record(order.record, RewriteRecord(entry=where.entry, written=intent))
            if not await guest.write(stub, [(one.physical, new) for one, _, new in work.steps]):
                await guest.write(stub, [(one.physical, old) for one, old, _ in work.steps])
                record = RewriteRecord(
                    entry=where.entry,
                    written=tuple(known.values()),
                    problem="a site did not read back as written; all were put back",
                )
        write_record(order.record, record)
        return record

    async def _changes(self, stub: Stub, placed: Placed, known: dict[int, Written]) -> list[Change]:
        """What the host wants, from the text as it was at home."""
        assert self._image is not None
        live = await self._live(stub, placed)
        for site in self._sites:
            if (one := known.get(site.address + placed.slide)) is not None:
                live[site.address] = one.home
        home = Host(features=self.order.born, maker="")
        return plan(self._sites, live, home, Host(self.order.features, self.order.maker))

    async def _live(self, stub: Stub, placed: Placed) -> dict[int, bytes]:
        """What stands at each site, by its linear address in the image."""
        assert self._image is not None
        folder = self.order.record.parent
        text = self._image.text
        near = [] if placed.afar else [site for site in self._sites if not site.vdso]
        rest = [site for site in self._sites if placed.afar or site.vdso]
        live: dict[int, bytes] = {}
        if near:
            content = await guest.dump(stub, placed.place(text.address), text.size, folder)
            for site in near:
                at = site.address - text.address
                live[site.address] = content[at : at + len(site.original)]
        places = [(placed.place(site.address), len(site.original)) for site in rest]
        found = await guest.pieces(stub, places) if rest else []
        return live | {site.address: data for site, data in zip(rest, found, strict=True)}

    def _pages(self, placed: Placed | None) -> Iterator[tuple[int, int]]:
        """Linear and physical address of each page that may hold hypercalls."""
        if placed is not None:
            for address in self._placeholders:
                yield address + placed.slide, placed.place(address)
        for physical in self.order.pages:
            yield physical, physical

    async def _page_changes(
        self, stub: Stub, address: int, physical: int, known: dict[int, Written]
    ) -> list[Change] | None:
        """What the host wants there, from the page as it was at home; None if it is none."""
        page = bytearray(b"".join(await guest.pieces(stub, [(physical, PAGE)])))
        for one in known.values():
            if physical <= one.physical < physical + PAGE:
                at = one.physical - physical
                page[at : at + len(one.home)] = one.home
        return page_changes(bytes(page), address, self.order.maker)

    async def _contexts(self, stub: Stub, work: "_Work") -> frozenset[int] | None:
        """The sites in which a saved context stands; None if nobody looked.

        Only the way home is searched: on the way out a site may also be left to trap.
        """
        doubtful = [
            Change(one.address, old, new, one.why, one.vdso)
            for one, old, new in work.differing()
            if new == one.home and not resumable(old, new)
        ]
        if not doubtful:
            return frozenset()
        if self.order.memory_mib > SEARCH_LIMIT_MIB:
            return None
        found: set[int] = set()
        for at in range(0, self.order.memory_mib * _MIB, _STRETCH):
            size = min(_STRETCH, self.order.memory_mib * _MIB - at)
            try:
                data = await guest.dump(stub, at, size, self.order.record.parent)
            except AfarError:
                return None  # too much to ask the stub for
            found |= interrupted(data, doubtful)
        return frozenset(found)


class _Work:
    """What differs between the guest as it is and as it shall be."""

    def __init__(self, known: dict[int, Written], wanted: dict[int, Written]) -> None:
        self._known = known
        self._wanted = wanted
        self.steps: list[tuple[Written, bytes, bytes]] = []
        self.restored = 0
        self._kept: set[int] = set()

    def differing(self) -> Iterator[tuple[Written, bytes, bytes]]:
        """Site, what stands there, what shall stand there."""
        for address in sorted(self._known.keys() | self._wanted.keys()):
            known, wanted = self._known.get(address), self._wanted.get(address)
            one = wanted or known
            assert one is not None
            old = known.now if known else one.home
            new = wanted.now if wanted else one.home
            if old != new:
                yield one, old, new

    def settle(self, where: Standing, contexts: frozenset[int] | None) -> dict[str, int]:
        """Choose the steps that are safe; returns what is left, by reason."""
        left: dict[str, int] = {}
        for one, old, new in self.differing():
            change = Change(one.address, old, new, one.why, one.vdso)
            reason = ""
            if any(inside(change, rip, 0) for rip in where.rips):
                reason = "a vCPU stands inside"
            elif not resumable(old, new):
                if new != one.home or contexts is None:
                    reason = "a context may stand inside"
                elif one.address in contexts:
                    reason = "a context stands inside"
            if reason:
                left[f"{one.why}: {reason}"] = left.get(f"{one.why}: {reason}", 0) + 1
                self._kept.add(one.address)
                continue
            self.steps.append((one, old, new))
            self.restored += new == one.home
        return left

    def outcome(self) -> Iterator[Written]:
        """All sites that are not as at home, after the steps."""
        for address in sorted(self._known.keys() | self._wanted.keys()):
            source = self._known if address in self._kept else self._wanted
            if (one := source.get(address)) is not None:
                yield one


def _written(change: Change, address: int, physical: int) -> Written:
    """The change as it is written down."""
    return Written(
        address=address,
        physical=physical,
        before=change.before.hex(),
        after=change.after.hex(),
        why=change.why,
        vdso=change.vdso,
    )


async def _known(stub: Stub, prior: RewriteRecord, where: Standing) -> dict[int, Written]:
    """What an earlier rewriting has left in this guest.

    A guest that has booted again runs a fresh kernel, most likely elsewhere: the record is void.

    :raises UnknownKernelError: it is the kernel of the record, and other bytes stand there.
    """
    if not prior.written or prior.entry != where.entry:
        return {}
    answers = await stub.ask(
        b"Qqemu.PhyMemMode:1",
        *(b"m%x,%x" % (one.physical, len(one.now)) for one in prior.written),
        b"Qqemu.PhyMemMode:0",
    )
    known: dict[int, Written] = {}
    at_home: set[int] = set()
    for one, answer in zip(prior.written, answers[1:-1], strict=True):
        if answer == one.after.encode():
            known[one.address] = one
        elif answer == one.before.encode():
            at_home.add(one.address)
    # An intent names two forms of one site.
    if {one.address for one in prior.written} - known.keys() - at_home:
        raise UnknownKernelError("the guest's text is not as the record of its rewriting says")
    return known


def _all_sites(image: KernelImage) -> tuple[Site, ...]:
    found = list(sites(image.alternatives(), image))
    for address, vdso in image.vdsos():
        found += sites(vdso.alternatives(), vdso, base=address)
    return tuple(found)
