"""A page of hypercalls in a guest that uses it: rewritten for the host's maker, and put back.

The guest is the small kernel, and the page is Xen's by its format only: TCG has no hypervisor to
call.  Both instructions are a #UD there, so what the guest executed is what its handler saw.
"""

import asyncio
import time

import pytest
from small_guest import PATIENCE_S, SMALL_KERNEL, firmware, small_guest

from isthmus.translate.rewrite.apply import Rewriter
from isthmus.translate.rewrite.record import RewriteOrder

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

PAGE, AREA, HANDLER = 0x30000, 0x10000, 0xA400
VMCALL, VMMCALL = "0f01c1", "0f01d9"
# incq 0x7100; push %rax; push %rcx; mov 16(%rsp),%rax; mov (%rax),%ecx; mov %ecx,0x7108; pop %rcx;
# pop %rax; addq $3,(%rsp); iretq
SEE = bytes.fromhex("48ff042500710000505148 8b442410 8b08 890c2508710000 59 58 4883042403 48cf")


def xen_page(call: str) -> bytes:
    entries = [
        (b"\xb8" + number.to_bytes(4, "little") + bytes.fromhex(call) + b"\xc3").ljust(32, b"\xcc")
        for number in range(128)
    ]
    entries[23] = b"\x0f\x0b".ljust(32, b"\xcc")
    return b"".join(entries)


async def test_a_guest_calls_through_its_page_there_and_at_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("x")
    async with small_guest(firmware(SMALL_KERNEL, home), home) as guest:
        await guest.translator.hold()
        await guest.write(HANDLER, SEE)
        await guest.quad(0x6060, HANDLER | 24 << 16 | 0x8E00 << 32, 0)
        await guest.write(PAGE, xen_page(VMCALL))
        # 1: mov $PAGE + 5 * 32, %edx; call *%rdx; jmp 1b
        code = b"\xba" + (PAGE + 5 * 32).to_bytes(4, "little") + b"\xff\xd2\xeb\xf7"
        await guest.write(AREA, code)
        await guest.enter(AREA, segments=guest.KERNEL)
        await seen(guest, VMCALL)
        for hop, maker, call in (
            (1, "AuthenticAMD", VMMCALL),
            (2, "AuthenticAMD", VMMCALL),
            (3, "GenuineIntel", VMCALL),
        ):
            order = RewriteOrder(
                record=home / f"{hop}.json",
                prior=home / f"{hop - 1}.json",
                born=frozenset(),
                features=frozenset(),
                maker=maker,
                memory_mib=16,
                pages=(PAGE,) if hop < 3 else (),
            )
            record = await Rewriter(order).apply(guest.stub)
            assert record.problem == ""
            assert record.left == {}
            assert len(record.written) == (127 if hop < 3 else 0)
            assert await guest.stub.memory(PAGE, 4096) == xen_page(call)
            await seen(guest, call)


async def seen(guest, call):
    """Let it run until its calls have gone on; they are this instruction."""
    before = await guest.read(0x7100)
    deadline = time.monotonic() + PATIENCE_S
    while await guest.read(0x7100) <= before + 10:
        assert time.monotonic() < deadline, "its calls do not go on"
        guest.stub.go()
        await asyncio.sleep(0.1)
        guest.stub.interrupt()
        await guest.stub.stopped()
    assert (await guest.read(0x7108) & 0xFFFFFF).to_bytes(3, "little").hex() == call
