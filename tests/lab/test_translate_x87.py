"""FISTTP from outside the guest: the stub tells no x87 tags, so the guest's own CPU is asked.

QEMU's TCG executes FISTTP on every CPU model.  So the guest raises #UD before it by INT 6, whose
return address is that of the instruction.
"""

import struct

import pytest
from small_guest import SMALL_KERNEL, SmallGuest, firmware, small_guest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

AREA = SmallGuest.AREA
CONTROL, NUMBER, RESULT, ENVIRONMENT = (AREA + offset for offset in (0x100, 0x110, 0x120, 0x140))
UNTOUCHED = 0x5555555555555555
MASKED, INVALID_OPEN = 0x37F, 0x37E
INFINITE = struct.pack("<QH", 1 << 63, 0x7FFF)
NEARLY_FOUR = struct.pack("<QH", (1 << 64) - 1, 0x4000)


def at(code: str, address: int) -> bytes:
    """An instruction with an absolute operand."""
    return bytes.fromhex(code + "25") + address.to_bytes(4, "little")


def program(*, loads: bool) -> bytes:
    fninit, int6, stay = bytes.fromhex("dbe3"), bytes.fromhex("cd06"), bytes.fromhex("ebfe")
    fldcw, fld, fisttp = at("d92c", CONTROL), at("db2c", NUMBER), at("dd0c", RESULT)
    return fninit + fldcw + fld * loads + int6 + fisttp + at("d934", ENVIRONMENT) + stay


@pytest.fixture
async def guest(tmp_path_factory):
    image = firmware(SMALL_KERNEL, tmp_path_factory.mktemp("rom"))
    async with small_guest(image, tmp_path_factory.mktemp("h")) as running:
        yield running


@pytest.mark.parametrize(
    ("control", "number", "stored", "status", "tags"),
    [
        (MASKED, NEARLY_FOUR, 3, 0x0020, 0xFFFF),  # inexact, popped
        (MASKED, INFINITE, 1 << 63, 0x0001, 0xFFFF),  # invalid: the "integer indefinite"
        (MASKED, None, 1 << 63, 0x0841, 0xFFFF),  # the stack was empty
        (INVALID_OPEN, INFINITE, UNTOUCHED, 0xB881, 0xBFFF),  # neither stored nor popped
    ],
)
async def test_does_what_a_cpu_does(guest, control, number, stored, status, tags):
    await guest.write(AREA, program(loads=number is not None))
    await guest.write(CONTROL, control.to_bytes(2, "little"))
    await guest.write(NUMBER, number or b"")
    await guest.quad(RESULT, UNTOUCHED)
    await guest.quad(ENVIRONMENT, 0, 0)
    await guest.enter(AREA, segments=SmallGuest.KERNEL)
    await guest.run(until_traps=1)
    assert guest.translator.tally.translated == {"FISTTP": 1}
    assert await guest.read(RESULT) == stored
    environment = await guest.stub.memory(ENVIRONMENT, 12)
    _, found_status, found_tags = (word & 0xFFFF for word in struct.unpack("<3I", environment))
    assert (hex(found_status), hex(found_tags)) == (hex(status), hex(tags))
    assert (await guest.records())["vector"] == -1
