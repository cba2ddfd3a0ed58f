"""AVX's own instructions where this machine's CPU cannot be asked: modes, state, MXCSR, pages.

Results, exceptions and undefined encodings in 64-bit mode are compared with this CPU in
``test_core_vectors``.  Source: Intel SDM vol. 2A, 2.3 and 2.4, and each instruction's pages.
"""

import pytest
from isthmus.translate._core import ffi

from isthmus.translate.machine import Kind, Machine, PageFaultError
from isthmus.translate.table import Placement, translatable

VZEROUPPER, VZEROALL = bytes.fromhex("c5f877"), bytes.fromhex("c5fc77")
VLDMXCSR = bytes.fromhex("c5f8ae16")  # [rsi]
VMOVAPS = bytes.fromhex("c5fc280e")  # ymm1, [rsi]
GP, NM, PF = 13, 7, 14
PAGE = 4096


class Pages:
    """Two pages from 0x1000 on: of zeroes, read-only ones, or none."""

    def __init__(self, first: str, second: str) -> None:
        self.kinds = {1: first, 2: second}
        self.bytes = bytearray(3 * PAGE)

    def _walk(self, address: int, size: int, write: int) -> None:
        for at in (address, address + size - 1):
            kind = self.kinds.get(at // PAGE, "none")
            if kind == "none" or (write and kind == "read"):
                raise PageFaultError(at if at == address else at // PAGE * PAGE,
                                     4 | write | (kind != "none"))  # fmt: skip

    def load(self, address: int, size: int) -> bytes:
        self._walk(address, size, 0)
        return bytes(self.bytes[address : address + size])

    def store(self, address: int, data: bytes) -> None:
        self._walk(address, len(data), 2)
        self.bytes[address : address + len(data)] = data


def machine(**state: int) -> Machine:
    fresh = Machine()
    ready = {"mode": 64, "cr4": 0x40600, "has_ymm": 1, "cpl": 3, "mxcsr": 0x1F80, **state}
    for name, value in ready.items():
        setattr(fresh.state, name, value)
    for number in range(16):
        ffi.memmove(fresh.state.xmm[number], b"\x80" * 16, 16)
        ffi.memmove(fresh.state.ymm_high[number], b"\x81" * 16, 16)
    return fresh


def zeroes(fresh: Machine) -> tuple[list[int], list[int]]:
    """Which lower and which upper halves are zero."""
    low, high = fresh.state.xmm, fresh.state.ymm_high
    return (
        [n for n in range(16) if not any(ffi.buffer(low[n], 16)[:])],
        [n for n in range(16) if not any(ffi.buffer(high[n], 16)[:])],
    )


@pytest.mark.parametrize(("mode", "count"), [(64, 16), (32, 8), (16, 8)])
def test_clearing_reaches_the_registers_that_the_mode_has(mode: int, count: int) -> None:
    fresh = machine(mode=mode)
    assert fresh.execute(VZEROUPPER, Pages("none", "none")) is Kind.DONE
    assert zeroes(fresh) == ([], list(range(count)))
    assert fresh.execute(VZEROALL, Pages("none", "none")) is Kind.DONE
    assert zeroes(fresh) == (list(range(count)), list(range(count)))


@pytest.mark.parametrize("code", [VZEROALL, VMOVAPS, VLDMXCSR])
def test_a_guest_that_has_no_avx_state_gets_its_invalid_opcode(code: bytes) -> None:
    nothing = Pages("none", "none")
    assert machine(cr4=0x600).execute(code, nothing) is Kind.NOT_OURS
    assert machine(has_ymm=0).execute(code, nothing) is Kind.LACKS_STATE
    lazy = machine(cr0=8)
    assert lazy.execute(code, nothing) is Kind.FAULT
    assert lazy.outcome.vector == NM


def test_virtual_8086_mode_has_no_vex() -> None:
    """Protected 16-bit code has: there it is told from LDS by a register where memory must be."""
    nothing = Pages("none", "none")
    assert machine(mode=16).execute(VZEROALL, nothing) is Kind.DONE
    assert machine(mode=16, rflags=0x20202).execute(VZEROALL, nothing) is Kind.NOT_OURS


@pytest.mark.parametrize(
    ("before", "value", "faults"),
    [
        (0x1F80, 0x0000FFFF, False),
        (0x1F80, 0x00010000, True),
        (0x1F80, 0x80000000, True),
        # MXCSR.MM: only a CPU with misaligned SSE has it, and the destination may have none.
        (0x1F80, 0x00020000, True),
        (0x21F80, 0x00020000, False),
    ],
)
def test_a_reserved_bit_of_mxcsr_is_refused(before: int, value: int, faults: bool) -> None:
    memory = Pages("write", "none")
    memory.store(0x1100, value.to_bytes(4, "little"))
    fresh = machine(mxcsr=before)
    fresh.state.gpr[6] = 0x1100
    assert fresh.execute(VLDMXCSR, memory) is (Kind.FAULT if faults else Kind.DONE)
    assert fresh.outcome.vector == (GP if faults else 0)
    assert fresh.state.mxcsr == (before if faults else value)


def test_an_aligned_move_stays_so_in_misaligned_mode() -> None:
    fresh = machine(mxcsr=0x21F80)
    fresh.state.gpr[6] = 0x1110
    assert fresh.execute(VMOVAPS, Pages("write", "write")) is Kind.FAULT
    assert (fresh.outcome.vector, fresh.outcome.error_code) == (GP, 0)


STORES = {
    "VMASKMOVPS": "c4e2752e16",  # [rsi], ymm1, ymm2
    "VPMASKMOVQ": "c4e2f58e16",
    "VMASKMOVDQU": "c5f9f7d1",  # xmm2, xmm1
}


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize(
    ("first", "second", "chosen", "fault", "written"),
    [
        ("write", "none", 0b0001, None, True),  # an element that is not chosen cannot fault
        ("none", "write", 0b1000, None, True),
        ("none", "none", 0b0000, None, False),
        ("write", "none", 0b1001, 0x2000, False),
        ("none", "write", 0b1001, 0x1FF0, False),
        ("read", "write", 0b1001, 0x1FF0, False),
    ],
)
def test_a_masked_store_that_faults_has_written_nothing(
    name: str, first: str, second: str, chosen: int, fault: int | None, written: bool
) -> None:
    """Quarters of the operand, two on each side of a page's end; the mask's signs choose them."""
    unit = 4 if name == "VMASKMOVDQU" else 8
    start = 0x2000 - 2 * unit
    mask = b"".join((b"\x80" if chosen >> n & 1 else b"\x00") * unit for n in range(4))
    fresh, memory = machine(), Pages(first, second)
    fresh.state.gpr[6] = fresh.state.gpr[7] = start
    ffi.memmove(fresh.state.xmm[1], mask[:16], 16)
    ffi.memmove(fresh.state.ymm_high[1], mask[16:] or bytes(16), len(mask[16:]))
    kind = fresh.execute(bytes.fromhex(STORES[name]), memory)
    assert kind is (Kind.DONE if fault is None else Kind.FAULT)
    assert any(memory.bytes) is written
    if fault is not None:
        assert fresh.outcome.vector == PF
        assert fresh.outcome.error_code & 2
        assert fresh.outcome.address // PAGE == fault // PAGE


def test_no_placement_covers_the_loss_of_avx() -> None:
    """Where CPUID shows no AVX no YMM state is kept, so there is nothing to execute it on."""
    for placement in Placement:
        assert "avx" not in translatable(placement)
        assert "avx" not in translatable(placement, avx=False)
