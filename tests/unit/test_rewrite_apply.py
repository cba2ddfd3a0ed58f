"""Rewriting a guest whose debug stub is played here: undone, taken up after a crash, never half."""

from pathlib import Path

import pytest

from isthmus.translate.paging import Space
from isthmus.translate.rewrite import guest
from isthmus.translate.rewrite.apply import Rewriter
from isthmus.translate.rewrite.guest import Placed, Standing
from isthmus.translate.rewrite.image import Alternative, Section
from isthmus.translate.rewrite.plan import Site
from isthmus.translate.rewrite.record import RewriteOrder, RewriteRecord, read_record, write_record

HOME, AWAY, ORIGINAL = (bytes.fromhex(text) for text in ("0f01f96690", "0faee80f31", "0f31909090"))
BASE, SITE = 0xFFFF_FFFF_8100_0000, 0x40
ENTRY = BASE + 0x800
FEATURES = frozenset({"sse2", "rdtscp"})


class _Image:
    """As much of a kernel image as the rewriter asks for."""

    text = Section(name=".text", address=BASE, offset=0, size=0x1000, code=True, stored=True)


PAGE_AT = 0x1000
INTEL_PAGE, AMD_PAGE = (
    b"".join(
        b"\xb8" + number.to_bytes(4, "little") + call + b"\xc3" + b"\xcc" * 23
        for number in range(128)
    )
    for call in (b"\x0f\x01\xc1", b"\x0f\x01\xd9")
)


class Machine:
    """Physical memory of two pages, behind the packets that the rewriter sends."""

    def __init__(self) -> None:
        self.memory = bytearray(0x2000)
        self.memory[SITE : SITE + 5] = HOME
        self.rips: tuple[int, ...] = (BASE,)
        self.breaks_at_write = 0
        self.writes = 0
        self.corrupts = False

    async def ask(self, *requests: bytes) -> list[bytes]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: bytes) -> bytes:
        if request.startswith(b"M"):
            self.writes += 1
            if self.writes == self.breaks_at_write:
                raise OSError("the mover is killed")
            place, data = request[1:].split(b":")
            at = int(place.split(b",")[0], 16)
            new = bytes.fromhex(data.decode())
            self.memory[at : at + len(new)] = b"\xcc" * len(new) if self.corrupts else new
            self.corrupts = False
        if request.startswith(b"m"):
            at, size = (int(part, 16) for part in request[1:].split(b","))
            return bytes(self.memory[at : at + size]).hex().encode()
        return b"OK"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    played = Machine()

    async def standing(_stub) -> Standing:
        space = Space(cr0=0, cr3=0, cr4=0, user=False)
        return Standing(entry=ENTRY, rips=played.rips, space=space, vcpu=0)

    async def place(*_) -> Placed:
        return Placed(slide=0, physical=-BASE)

    async def dump(_stub, physical: int, size: int, _folder) -> bytes:
        return bytes(played.memory[physical : physical + size]).ljust(size, b"\0")

    for name, function in (("standing", standing), ("place", place), ("dump", dump)):
        monkeypatch.setattr(guest, name, function)
    return played


def rewriter(
    tmp_path: Path,
    hop: int,
    features: frozenset[str],
    *,
    maker: str = "GenuineIntel",
    pages: tuple[int, ...] = (),
) -> Rewriter:
    """The rewriter of the hop'th move, with an image whose only site is a clock's reading."""
    order = RewriteOrder(
        record=tmp_path / f"{hop}.json",
        born=FEATURES,
        features=features,
        maker=maker,
        memory_mib=1,
        prior=tmp_path / f"{hop - 1}.json",
        pages=pages,
    )
    made = Rewriter(order)
    entries = tuple(
        Alternative(
            address=BASE + SITE, length=5, feature=feature, negated=False, replacement=code, home=0
        )
        for feature, code in ((114, AWAY), (59, HOME[:3]))
    )
    made._sites = (Site(address=BASE + SITE, original=ORIGINAL, entries=entries),)
    made._image = _Image()
    return made


def stands(machine: Machine) -> bytes:
    return bytes(machine.memory[SITE : SITE + 5])


async def test_away_and_home(machine: Machine, tmp_path: Path) -> None:
    away = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    assert stands(machine) == AWAY
    assert [(one.home, one.now) for one in away.written] == [(HOME, AWAY)]
    assert read_record(tmp_path / "1.json") == away
    home = await rewriter(tmp_path, 2, FEATURES).apply(machine)
    assert (stands(machine), home.written, home.restored) == (HOME, (), 1)


async def test_a_site_with_a_vcpu_inside_is_left(machine: Machine, tmp_path: Path) -> None:
    machine.rips = (BASE, BASE + SITE + 3)
    record = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    assert (stands(machine), record.written) == (HOME, ())
    assert record.left == {"rdtscp: a vCPU stands inside": 1}


async def test_a_saved_context_inside_keeps_the_site_as_it_is(
    machine: Machine, tmp_path: Path
) -> None:
    away = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    machine.memory[0x700:0x708] = (BASE + SITE + 3).to_bytes(8, "little")
    home = await rewriter(tmp_path, 2, FEATURES).apply(machine)
    assert stands(machine) == AWAY
    assert home.written == away.written  # still to be undone, at the next move
    machine.memory[0x700:0x708] = bytes(8)
    assert (await rewriter(tmp_path, 3, FEATURES).apply(machine)).written == ()
    assert stands(machine) == HOME


@pytest.mark.parametrize("before_writing", [True, False])
async def test_a_killed_mover_is_taken_up(
    machine: Machine, tmp_path: Path, before_writing: bool
) -> None:
    """On the way out and on the way home, killed between intent and record."""
    for hop, features, wanted in ((1, frozenset({"sse2"}), AWAY), (2, FEATURES, HOME)):
        machine.breaks_at_write = machine.writes + 1
        await rewriter(tmp_path, hop, features).apply(machine)
        if not before_writing:
            machine.memory[SITE : SITE + 5] = wanted
        machine.breaks_at_write = 0
        record = await rewriter(tmp_path, hop, features).apply(machine)
        assert stands(machine) == wanted
        assert record.problem == ""
        assert [one.now for one in record.written] == ([AWAY] if hop == 1 else [])


async def test_what_does_not_read_back_is_put_back(machine: Machine, tmp_path: Path) -> None:
    machine.corrupts = True
    record = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    assert "read back" in record.problem
    assert (stands(machine), record.written) == (HOME, ())


async def test_text_that_is_not_as_recorded_is_not_touched_and_not_forgotten(
    machine: Machine, tmp_path: Path
) -> None:
    away = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    machine.memory[SITE : SITE + 5] = b"\x90" * 5
    record = await rewriter(tmp_path, 2, FEATURES).apply(machine)
    assert record.problem
    assert stands(machine) == b"\x90" * 5
    assert read_record(tmp_path / "2.json").written == away.written


async def test_the_record_of_a_kernel_that_was_booted_before_is_void(
    machine: Machine, tmp_path: Path
) -> None:
    away = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    write_record(tmp_path / "1.json", RewriteRecord(entry=ENTRY + 0x200000, written=away.written))
    machine.memory[SITE : SITE + 5] = AWAY
    record = await rewriter(tmp_path, 2, FEATURES).apply(machine)
    assert (record.written, record.problem, stands(machine)) == ((), "", AWAY)


def page(machine: Machine) -> bytes:
    return bytes(machine.memory[PAGE_AT : PAGE_AT + 0x1000])


@pytest.mark.parametrize("named", [True, False])
async def test_a_page_of_hypercalls_goes_there_and_back(
    machine: Machine, tmp_path: Path, named: bool
) -> None:
    """Home by the record alone, too: whoever gives the order may know of no page any more."""
    machine.memory[PAGE_AT:] = INTEL_PAGE
    order = {"maker": "AuthenticAMD", "pages": (PAGE_AT,)}
    away = await rewriter(tmp_path, 1, FEATURES, **order).apply(machine)
    assert page(machine) == AMD_PAGE
    assert len(away.written) == 128
    assert {(one.before, one.after, one.why) for one in away.written} == {
        ("0f01c1", "0f01d9", "xen page")
    }
    # To another host of that maker: nothing is to be done, and nothing is forgotten.
    on = await rewriter(tmp_path, 2, FEATURES, **order).apply(machine)
    assert (page(machine), on.written, on.restored) == (AMD_PAGE, away.written, 0)
    pages = (PAGE_AT,) if named else ()
    home = await rewriter(tmp_path, 3, FEATURES, pages=pages).apply(machine)
    assert (page(machine), home.written, home.restored) == (INTEL_PAGE, (), 128)


@pytest.mark.parametrize("write", [1, 2, 64, 128])
async def test_a_page_that_was_written_in_part_is_taken_up(
    machine: Machine, tmp_path: Path, write: int
) -> None:
    machine.memory[PAGE_AT:] = AMD_PAGE
    machine.breaks_at_write = write
    await rewriter(tmp_path, 1, FEATURES, pages=(PAGE_AT,)).apply(machine)
    assert page(machine) not in {AMD_PAGE, INTEL_PAGE} or write == 1
    machine.breaks_at_write = 0
    record = await rewriter(tmp_path, 1, FEATURES, pages=(PAGE_AT,)).apply(machine)
    assert (page(machine), len(record.written), record.problem) == (INTEL_PAGE, 128, "")


async def test_a_page_of_no_documented_form_is_left_and_told_of(
    machine: Machine, tmp_path: Path
) -> None:
    broken = bytearray(INTEL_PAGE)
    broken[0x123] ^= 1
    machine.memory[PAGE_AT:] = broken
    record = await rewriter(tmp_path, 1, FEATURES, maker="AuthenticAMD", pages=(PAGE_AT,)).apply(
        machine
    )
    assert page(machine) == broken
    assert record.written == ()
    assert record.left == {"hypercall page: of no documented form": 1}


async def test_where_qemu_is_on_another_machine_the_stub_is_asked_for_the_sites(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a lab host: no file that QEMU writes comes here, on the way out nor on the way home."""

    async def dump(*_) -> bytes:
        raise guest.AfarError("QEMU writes its files on another machine")

    async def place(*_) -> Placed:
        return Placed(slide=0, physical=-BASE, afar=True)

    monkeypatch.setattr(guest, "dump", dump)
    monkeypatch.setattr(guest, "place", place)
    away = await rewriter(tmp_path, 1, frozenset({"sse2"})).apply(machine)
    assert (stands(machine), away.problem) == (AWAY, "")
    # Whether a context stands inside cannot be looked up there, so the site stays as it works.
    home = await rewriter(tmp_path, 2, FEATURES).apply(machine)
    assert (stands(machine), home.written) == (AWAY, away.written)
    assert home.left == {"rdtscp: a context may stand inside": 1}


@pytest.mark.parametrize(
    ("record", "abroad", "left"),
    [
        (RewriteRecord(problem="its notes differ"), True, "its notes differ"),
        (RewriteRecord(), True, "no hypercall was found in its kernel"),
        (RewriteRecord(), False, ""),
        (RewriteRecord(left={"rdtscp: a vCPU stands inside": 1}), False, ""),
        (RewriteRecord(left={"vmmcall: a vCPU stands inside": 1}), False,
         "vmmcall: a vCPU stands inside"),
    ],
)  # fmt: skip
def test_a_guest_does_not_run_with_hypercalls_of_the_wrong_maker(
    record: RewriteRecord, abroad: bool, left: str
) -> None:
    assert record.hypercalls_left(abroad=abroad) == left


async def test_pieces_of_memory_come_in_packets_that_the_stub_can_send(machine: Machine) -> None:
    machine.memory[:] = bytes(range(256)) * 32
    asked = [(0x10, 3), (0x100, 0x1801), (0, 0)]
    found = await guest.pieces(machine, asked)
    assert found == [bytes(machine.memory[at : at + size]) for at, size in asked]
