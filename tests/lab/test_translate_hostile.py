"""Guests that mean harm, on a kernel that is not Linux: the translator serves, and nothing more.

It never crashes, never stalls, and never writes where the guest's own CPU could not have written.
"""

import asyncio

import pytest
from small_guest import (
    PATIENCE_S,
    SMALL_KERNEL,
    SmallGuest,
    assembled,
    firmware,
    small_guest,
    until,
)

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

POPCNT = bytes.fromhex("f30fb8c1")  # popcnt eax, ecx
LOAD = bytes.fromhex("f30fb806")  # popcnt eax, [rsi]
STORE = bytes.fromhex("f20f2b06")  # movntsd [rsi], xmm0
UD2, STAY = b"\x0f\x0b", b"\xeb\xfe"
RAX, RCX, RSI = 0, 2, 4
AREA = SmallGuest.AREA
LOW, FAR = 0x40000000, 0x40001000  # pages of the tests' own tables
PT = 0x21000
PRESENT, ALL = 1, 7


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return firmware(SMALL_KERNEL, tmp_path_factory.mktemp("rom"))


@pytest.fixture
async def guest(image, tmp_path_factory):
    async with small_guest(image, tmp_path_factory.mktemp("h")) as running:
        yield running


async def own_pages(guest, *entries):
    """Map the gigabyte at LOW by tables of the test's own."""
    await guest.quad(0x2008, 0x20000 | ALL)
    await guest.quad(0x20000, PT | ALL)
    await guest.quad(PT, *entries)


def done(guest):
    return guest.translator.tally.translated


async def told(guest) -> bool:
    """Whether the guest's own handler of #UD has run."""
    return (await guest.records())["ud"] >= 1


@pytest.mark.parametrize("segments", [SmallGuest.USER, SmallGuest.USER32, SmallGuest.KERNEL])
async def test_serves_a_kernel_that_is_not_linux(guest, segments):
    """Handler on a stack of its own, no padding, no NOP: and its own UD2 reaches it."""
    vectors = guest.translator.vectors
    assert (vectors.entry, vectors.after, vectors.island) == (0x5000 + 6 * 64, None, None)
    await guest.write(AREA, POPCNT + UD2 + POPCNT + UD2 + STAY)
    await guest.register(RCX, 0xFF)
    await guest.enter(AREA, segments=segments)
    await guest.run(until_traps=4)
    assert (await guest.registers()).general[RAX] == 8
    found = await guest.records()
    assert (found["ud"], found["ud_rip"], found["vector"]) == (2, AREA + 10, -1)
    assert done(guest) == {"POPCNT": 2}


async def test_a_run_is_one_stop(guest):
    """MOV, ADD and a jump between them cost nothing."""
    moves = bytes.fromhex("89c1 83c101 eb02 0f0b".replace(" ", ""))
    await guest.write(AREA, (POPCNT + moves) * 4 + POPCNT + STAY)
    await guest.register(RCX, 0b111)
    await guest.enter(AREA)
    await guest.run(until_traps=1)
    assert done(guest) == {"POPCNT": 5}
    assert guest.translator.tally.traps == 1
    # 3 ones; 3 + 1 = 4; 1 one; 1 + 1 = 2; 1 one; and so on
    registers = (await guest.registers()).general
    assert (registers[RAX], registers[RCX]) == (1, 2)


async def test_a_loop_of_missing_instructions_is_left_now_and_then(guest):
    """It never ends, and all of it could be done in one stop: it is not."""
    await guest.write(AREA, POPCNT + bytes.fromhex("ebfa"))
    await guest.enter(AREA)
    await guest.run(until_traps=2, ends=False)
    tally = guest.translator.tally
    assert tally.traps > 1
    assert tally.translated["POPCNT"] <= 33 * tally.traps


async def test_a_flood_does_not_starve_holding(guest):
    await guest.write(AREA, UD2 * 200 + POPCNT + bytes.fromhex("e967feffff"))
    await guest.enter(AREA)
    tally = guest.translator.tally
    for _ in range(5):
        before = tally.passed
        await guest.translator.release()
        await until(lambda before=before: tally.passed > before + 2)
        async with asyncio.timeout(PATIENCE_S):
            await guest.translator.hold()
    assert not guest.translator.problem


async def test_an_operand_that_is_not_mapped_faults_at_its_address(guest):
    await own_pages(guest, 0x30000 | ALL)
    await guest.write(AREA, LOAD)
    await guest.register(RSI, FAR + 8)
    await guest.enter(AREA)
    await guest.run()
    found = await guest.records()
    assert (found["vector"], found["cr2"], found["first"], found["second"]) == (
        14, FAR + 8, 4, AREA,
    )  # fmt: skip


async def test_an_instruction_whose_end_is_not_mapped_faults_there(guest):
    """The CPU said #UD after its first bytes; the fetch of the rest is what has to fail."""
    await own_pages(guest, 0x30000 | ALL)
    code = bytes.fromhex("660f78c01008")  # extrq xmm0, 16, 8
    await guest.write(0x31000 - 4, code[:4])
    await guest.enter(FAR - 4)
    await guest.run()
    found = await guest.records()
    assert (found["vector"], found["cr2"], found["second"]) == (14, FAR, FAR - 4)
    assert found["first"] & ~0x10 == 4
    assert done(guest) == {}


async def test_an_instruction_across_pages_is_done(guest):
    await own_pages(guest, 0x30000 | ALL, 0x38000 | ALL)  # not neighbours in memory
    code = bytes.fromhex("660f78c01008") + STAY
    await guest.write(0x31000 - 4, code[:4])
    await guest.write(0x38000, code[4:])
    await guest.enter(FAR - 4)
    await guest.run(until_traps=1)
    assert done(guest) == {"EXTRQ": 1}


# What a page table may say: devices, a ROM, nothing at all, itself, reserved bits.
APIC, ROM, NOWHERE = 0xFEE00000, 0xFFFFF000, 0xFF_F000_0000


@pytest.mark.parametrize("physical", [APIC, ROM, NOWHERE])
async def test_a_store_reaches_nothing_but_ram(guest, physical):
    before = await guest.stub.memory(0xFFFFF000, 64)
    await own_pages(guest, physical | ALL)
    await guest.write(AREA, STORE + STAY)
    await guest.register(RSI, LOW + 8)
    await guest.enter(AREA)
    await guest.run()
    assert done(guest) == {}
    assert (await guest.records())["ud"] >= 1, "the guest has to be told"
    assert await guest.stub.memory(0xFFFFF000, 64) == before


async def test_a_rom_may_be_read(guest):
    await own_pages(guest, ROM | ALL)
    await guest.write(AREA, LOAD + STAY)
    await guest.register(RSI, LOW)
    await guest.enter(AREA)
    await guest.run(until_traps=1)
    first = await guest.stub.memory(0xFFFFF000, 4)
    assert (await guest.registers()).general[RAX] == int.from_bytes(first, "little").bit_count()


@pytest.mark.parametrize("top", [APIC, ROM, NOWHERE])
async def test_page_tables_that_are_no_ram_are_not_walked(guest, top):
    """A table in a device or nowhere: the guest gets its #UD.  A ROM is read, as by a CPU, and what
    stands there is no entry: a page fault.  Nothing is written in any case.
    """
    before = await guest.stub.memory(0xFFFFF000, 0x1000)
    await own_pages(guest, 0x30000 | ALL)
    await guest.quad(0x20000, top | ALL)
    await guest.write(0x30000, bytes(0x1000))
    await guest.write(AREA, STORE + STAY)
    await guest.register(RSI, LOW + 8)
    await guest.enter(AREA)
    await guest.run()
    assert done(guest) == {}
    found = await guest.records()
    if top == ROM:
        assert (found["ud"], found["vector"], found["cr2"]) == (0, 14, LOW + 8)
    else:
        assert guest.translator.tally.faulted == 0
        assert (found["ud"], found["ud_rip"]) >= (1, AREA), "the guest has to be told"
    assert await guest.stub.memory(0xFFFFF000, 0x1000) == before
    assert await guest.stub.memory(0x30000, 0x1000) == bytes(0x1000)


async def test_page_tables_that_lead_to_themselves_are_walked_as_by_a_cpu(guest):
    """The directory is its own table and its own page: the store lands in it, once."""
    await own_pages(guest, 0x30000 | ALL)
    await guest.quad(0x20000, 0x20000 | ALL)
    await guest.write(AREA, STORE + STAY)
    await guest.register(RSI, LOW + 0x100)
    value = bytes.fromhex("1122334455667788")
    (answer,) = await guest.stub.ask(
        b"P%x=%s" % (guest.stub.numbers["xmm0"], (value + bytes(8)).hex().encode())
    )
    assert answer == b"OK"
    await guest.enter(AREA)
    await guest.run(until_traps=1)
    assert done(guest) == {"MOVNTSD": 1}
    assert (await guest.records())["vector"] == -1
    assert await guest.stub.memory(0x20100, 8) == value
    entry = await guest.read(0x20000)
    assert entry & ~0x60 == 0x20000 | ALL
    assert entry & 0x60, "accessed, and dirty"


async def test_a_page_that_goes_away_between_is_a_page_fault(guest):
    """The instruction's own page: gone when it is fetched (as by another vCPU)."""
    await own_pages(guest, 0x30000 | ALL)
    await guest.write(0x30000, POPCNT + STAY)
    await guest.enter(LOW)
    work = guest.translator._work
    real, seen = guest.translator._reader.read, []

    async def read(stop, vectors):
        trap = await real(stop, vectors)
        if trap is not None and not seen:
            seen.append(trap.rip)
            await guest.stub.ask(
                b"Qqemu.PhyMemMode:1", b"M%x,8:0000000000000000" % PT, b"Qqemu.PhyMemMode:0"
            )
            trap.code = b""
        return trap

    guest.translator._reader.read = read
    assert work is guest.translator._work
    await guest.run()
    found = await guest.records()
    assert seen == [LOW]
    assert (found["vector"], found["cr2"], found["second"]) == (14, LOW, LOW)


async def test_code_that_is_rewritten_is_done_as_it_is_now(guest):
    """The same address, other bytes: what was done there last time counts for nothing."""
    await guest.register(RCX, 0xF7)
    for code, expected in ((POPCNT, 7), (bytes.fromhex("f3480fb8c4"), 0xF000.bit_count())):
        await guest.write(AREA, code + STAY)
        await guest.enter(AREA, segments=guest.KERNEL)
        await guest.register(16, guest.DOOR)
        await guest.run(until_traps=1)
        assert (await guest.registers()).general[RAX] == expected


async def test_a_store_into_what_follows_ends_the_run(guest):
    """MOVNTSD over the POPCNT behind it, which becomes UD2: the guest's CPU has to see that."""
    await guest.write(AREA, STORE + POPCNT + STAY)
    await guest.write(AREA + 0x100, UD2 + STAY * 3)
    await guest.register(RSI, AREA + 4)
    (answer,) = await guest.stub.ask(
        b"P%x=%s" % (guest.stub.numbers["xmm0"], (UD2 + STAY * 3 + bytes(8)).hex().encode())
    )
    assert answer == b"OK"
    await guest.enter(AREA)
    await guest.run()
    found = await guest.records()
    assert (found["ud"], found["ud_rip"]) == (1, AREA + 4)
    assert done(guest) == {"MOVNTSD": 1}


@pytest.mark.parametrize("base", [0x8000_0000_0000, 0xFFFF_0000_0000_0000])
async def test_a_base_that_is_not_canonical_is_a_general_protection(guest, base):
    await guest.write(AREA, LOAD + STAY)
    await guest.register(RSI, base)
    await guest.enter(AREA)
    await guest.run()
    assert (await guest.records())["vector"] in {13, 14}
    assert done(guest) == {}


# Vector 1: write down RIP and DR6 of each step, and stop stepping after eight.
STEP_HANDLER = """
    push %rax
    push %rcx
    mov 0x7140, %rcx
    incq 0x7140
    shl $4, %rcx
    mov 16(%rsp), %rax
    mov %rax, 0x9100(%rcx)
    mov %dr6, %rax
    mov %rax, 0x9108(%rcx)
    mov $0xffff0ff0, %eax
    mov %rax, %dr6
    cmp $0x70, %ecx
    jb 1f
    andl $~0x100, 32(%rsp)
1:  pop %rcx
    pop %rax
    iretq
"""


@pytest.mark.parametrize("segments", [SmallGuest.USER, SmallGuest.USER32, SmallGuest.KERNEL])
async def test_a_single_step_ends_behind_each_instruction(guest, tmp_path, segments):
    """With TF set each instruction is followed by one #DB, at the next one, whoever executed it."""
    (tmp_path / "step.S").write_text(STEP_HANDLER)
    handler = assembled(tmp_path / "step.S", tmp_path)
    await guest.write(0xA400, handler)
    await guest.quad(0x6010, 0xA400 | 24 << 16 | 0x8E00 << 32, 0)
    nop, rdtscp, clear = b"\x90", bytes.fromhex("0f01f9"), bytes.fromhex("31c0")
    parts = (POPCNT, nop, POPCNT, POPCNT, rdtscp, clear, POPCNT, nop)
    await guest.write(AREA, b"".join(parts) + STAY)
    await guest.register(RCX, 0xFF)
    await guest.enter(AREA, segments=segments, flags=0x102)
    await guest.run(until_traps=5)
    steps = [await guest.read(0x9100 + 16 * index) for index in range(8)]
    reasons = [await guest.read(0x9108 + 16 * index) for index in range(8)]
    ends = [len(b"".join(parts[: index + 1])) for index in range(8)]
    assert steps == [AREA + end for end in ends]
    assert {reason & 0xE00F for reason in reasons} == {0x4000}
    assert await guest.read(0x7140) == 8
    assert done(guest) == {"POPCNT": 4, "RDTSCP": 1}
    assert (await guest.registers()).general[RAX] in {0, 8}


@pytest.mark.parametrize("stack", [1, 2])
async def test_a_single_step_and_a_fault_come_on_the_stacks_of_their_gates(guest, stack):
    """IST: that of #UD, or another; the frame of #UD is not where theirs has to be."""
    await guest.quad(0x752C, 0x8C00)
    for vector in (1, 14):
        at = 0x6000 + vector * 16
        (gate,) = await guest.stub.ask(b"m%x,8" % at)
        value = int.from_bytes(bytes.fromhex(gate.decode()), "little")
        await guest.quad(at, value & ~(7 << 32) | stack << 32)
    await own_pages(guest, 0x30000 | ALL)
    tops = {1: 0x8800, 2: 0x8C00}
    for code, flags, frame, expected in (
        (LOAD, 2, 48, AREA),
        (POPCNT + STAY, 0x102, 40, AREA + 4),
    ):
        await guest.write(AREA, code)
        await guest.register(RSI, FAR)
        await guest.register(16, guest.DOOR)
        await guest.enter(AREA, flags=flags)
        await guest.run()
        registers = await guest.registers()
        assert registers.rsp == tops[stack] - frame - 8, "the handler has pushed one quadword"
        where = registers.rsp + 8 + (frame - 40)
        assert await guest.read(where) == expected
        assert await guest.read(where + 24) == 0xF000


async def test_jumping_to_the_entry_is_not_an_exception(guest):
    """Kernel code with a stack that no #UD left: nothing is executed for it."""
    await guest.quad(0xA000, AREA + 0x100, 0x2B, 0xFFFFFFFFFFFFFFFF, 0xF000, 0x23)
    await guest.write(AREA + 0x100, POPCNT)
    await guest.enter(guest.translator.vectors.entry, segments=guest.KERNEL, rsp=0xA008)
    await guest.quad(0xA008, 0x1234567812345678, 0xFFFF0000, 0xFFFFFFFFFFFFFFFF)
    await guest.run()
    assert done(guest) == {}


async def test_a_frame_where_no_memory_is_does_not_stall(guest):
    """The stack for #UD is not mapped: the CPU itself ends in a triple fault, or worse."""
    await guest.quad(0x7524, 0x7FFF_FFFF_0000)
    await guest.write(AREA, POPCNT + STAY)
    await guest.enter(AREA)
    await guest.translator.release()
    await asyncio.sleep(0.5)
    async with asyncio.timeout(PATIENCE_S):
        await guest.translator.hold()
    assert done(guest) == {}


async def test_nested_faults_are_all_served(guest):
    """A page fault's handler that executes a missing instruction itself."""
    await own_pages(guest, 0x30000 | ALL)
    await guest.write(0x5000 + 14 * 64, POPCNT + STAY)
    await guest.write(AREA, LOAD)
    await guest.register(RCX, 0x77)
    await guest.register(RSI, FAR)
    await guest.enter(AREA)
    await guest.run(until_traps=2)
    assert guest.translator.tally.faulted == 1
    assert done(guest) == {"POPCNT": 1}
    assert (await guest.registers()).general[RAX] == 6


async def test_upper_halves_are_refused_honestly(image, tmp_path_factory):
    """VPADDD on YMM: no stub shows them, so the guest gets its #UD, and the operator a count."""
    home = tmp_path_factory.mktemp("y")
    async with small_guest(image, home, cpu="Haswell,-avx2") as guest:
        await guest.register(guest.stub.numbers["cr4"], 0x40620)  # OSXSAVE
        await guest.write(AREA, bytes.fromhex("c5f5fec2") + STAY)
        await guest.enter(AREA)
        await guest.run()
        assert (await guest.records())["ud"] >= 1
        assert guest.translator.tally.lacking["VPADDD"] >= 1
        assert done(guest) == {}


@pytest.mark.parametrize("physical", [APIC, ROM, NOWHERE])
async def test_a_frame_that_is_no_ram_is_left_alone(guest, physical):
    """The stack for #UD is a device, a ROM or nothing: what the CPU wrote there is lost.

    Nothing is read from there for an instruction, and nothing is written.
    """
    before = await guest.stub.memory(0xFFFFF000, 0x1000)
    await own_pages(guest, physical | ALL)
    await guest.quad(0x7524, LOW + 0xE00)
    await guest.write(AREA, POPCNT + STAY)
    await guest.enter(AREA)
    await guest.run_until(lambda: told(guest))  # the guest's own handler has to run
    assert done(guest) == {}
    assert await guest.stub.memory(0xFFFFF000, 0x1000) == before


async def test_a_stack_that_becomes_a_device_is_noticed(guest):
    """Where frames were served before, too."""
    await own_pages(guest, 0x30000 | ALL)
    await guest.quad(0x7524, LOW + 0xE00)
    await guest.write(AREA, POPCNT * 2 + STAY)
    await guest.enter(AREA)
    await guest.run(until_traps=1)
    assert done(guest) == {"POPCNT": 2}
    await own_pages(guest, ROM | ALL)
    before = await guest.stub.memory(0xFFFFF000, 0x1000)
    await guest.register(16, guest.DOOR)
    await guest.enter(AREA)
    slices = iter(range(10))

    async def enough() -> bool:
        # Nothing tells: its frames are lost in the device, so its own handler may never run.
        return next(slices, None) is None

    await guest.run_until(enough)
    assert done(guest) == {"POPCNT": 2}
    assert await guest.stub.memory(0xFFFFF000, 0x1000) == before
