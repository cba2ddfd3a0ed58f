"""Interrupt tables that change under the translator, on a kernel that is not Linux."""

import asyncio

import pytest
from small_guest import SMALL_KERNEL, SmallGuest, assembled, firmware, small_guest, until

from isthmus.translate.vectors import NoEntryError

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

AREA = SmallGuest.AREA
TABLE, HANDLER, SECOND = 0xB000, 0xA800, 0xC000
# The kernel's own handler goes on 2 bytes behind, at the last byte of it: STC.
RDTSCP_FOR_EVER = bytes.fromhex("0f01f9ebfb")
COUNT_AND_TRY_AGAIN = bytes.fromhex("48ff0425007100 0048cf".replace(" ", ""))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return firmware(SMALL_KERNEL, tmp_path_factory.mktemp("rom"))


@pytest.fixture
async def guest(image, tmp_path_factory):
    async with small_guest(image, tmp_path_factory.mktemp("t"), "-smp", "2") as running:
        yield running


def register_of(table: int) -> bytes:
    """What LIDT takes."""
    return (0x1FF).to_bytes(2, "little") + table.to_bytes(8, "little")


async def another_table(guest):
    """A table like the first one, but for its #UD handler, which changes nothing."""
    content = await guest.stub.memory(0x6000, 0x200)
    await guest.write(TABLE, content)
    await guest.quad(TABLE + 6 * 16, HANDLER | 24 << 16 | 0x8E00 << 32, 0)
    await guest.write(HANDLER, COUNT_AND_TRY_AGAIN)


async def second_vcpu(guest, folder, table):
    """Bring it up: the first one sends INIT and SIPI, through its local APIC."""
    await guest.write(SECOND, assembled(SMALL_KERNEL.with_name("small_second_vcpu.S"), folder))
    await guest.write(SECOND + 0x100, register_of(table))
    await guest.quad(0x4000 + 0x1F7 * 8, 0xFEE00083)  # map the APIC
    code = b""
    for register, value in ((0x310, 1 << 24), (0x300, 0x4500), (0x300, 0x4600 | SECOND >> 12)):
        address = (0xFEE00000 + register).to_bytes(4, "little")
        code += b"\xbf" + address + b"\xc7\x07" + value.to_bytes(4, "little")  # movl $v, (%rdi)
    await guest.write(AREA, code + RDTSCP_FOR_EVER)
    await guest.enter(AREA, segments=guest.KERNEL)


async def test_another_table_is_found(guest):
    """LIDT while it runs: the new handler tries again until it is served."""
    await another_table(guest)
    await guest.write(0x7010, register_of(TABLE))
    await guest.write(AREA, bytes.fromhex("0f011c2510700000") + RDTSCP_FOR_EVER)  # lidt 0x7010
    await guest.enter(AREA, segments=guest.KERNEL)
    await guest.translator.release()
    await until(lambda: guest.translator.translated["RDTSCP"] > 100)
    assert guest.translator.vectors.entry == HANDLER
    await guest.translator.hold()
    assert not guest.translator.problem
    assert (await guest.records())["ud"] > 0, "the new handler was entered before it was found"


async def test_a_gate_that_is_changed_is_found(guest):
    """The same table, another handler."""
    await guest.write(HANDLER, COUNT_AND_TRY_AGAIN)
    change = bytes.fromhex("66c7042560600000") + HANDLER.to_bytes(2, "little")  # movw $h, 0x6060
    await guest.write(AREA, change + RDTSCP_FOR_EVER)
    await guest.enter(AREA, segments=guest.KERNEL)
    await guest.translator.release()
    await until(lambda: guest.translator.translated["RDTSCP"] > 100)
    assert guest.translator.vectors.entry == HANDLER
    await guest.translator.hold()


async def test_vcpus_with_handlers_of_their_own_are_refused_until_they_agree(
    guest, tmp_path_factory
):
    """The operator is told; the guest runs on, untranslated; nothing is ever done at one only."""
    await another_table(guest)
    await second_vcpu(guest, tmp_path_factory.mktemp("second"), TABLE)
    translator = guest.translator
    await translator.release()
    await until(lambda: translator.problem)
    status = translator.status()
    assert "its vCPUs have handlers of their own" in status.problem
    assert (status.armed, status.running) == (False, True)
    done = translator.translated["RDTSCP"]
    await asyncio.sleep(0.3)
    assert translator.translated["RDTSCP"] == done
    await translator.hold()
    with pytest.raises(NoEntryError, match="handlers of their own"):
        await translator.arm()
    await guest.write(SECOND + 0x100, register_of(0x6000))
    await guest.stub.ask(b"Hgp1.1")
    await guest.register(16, AREA + 33)
    await translator.release()
    await until(lambda: translator.translated["RDTSCP"] > done + 100)
    assert translator.status().problem == ""
    assert len(translator.vectors.vcpus) == 2
    await translator.hold()


async def test_a_second_vcpu_that_is_started_is_served(guest, tmp_path_factory):
    """It was there, but not started, when the translator was armed."""
    await second_vcpu(guest, tmp_path_factory.mktemp("second"), 0x6000)
    code = await guest.stub.memory(SECOND, 0x100)
    loop = bytes.fromhex("0f011c2500c10000ebf6")
    at = code.index(loop)
    await guest.write(SECOND + at + 8, RDTSCP_FOR_EVER)
    await guest.translator.release()
    await until(
        lambda: len(guest.translator.vectors.vcpus if guest.translator.vectors else ()) == 2
    )
    await guest.translator.hold()
    done = guest.translator.translated["RDTSCP"]
    await guest.stub.ask(b"Hgp1.1")
    await guest.write(AREA, b"\xeb\xfe" * 24)  # the first one rests
    await guest.register(16, AREA)
    await guest.translator.release()
    await until(lambda: guest.translator.translated["RDTSCP"] > done + 100)
    await guest.translator.hold()
    assert not guest.translator.problem
