import time
from itertools import pairwise
from pathlib import Path

import pytest

from isthmus.guest.console import MAX_BYTES, MAX_LINES, Kind, find_death

READ_TSC = b"""\
[    4.112003] isthmus: payload up\r
[    9.730113] invalid opcode: 0000 [#1] PREEMPT SMP NOPTI\r
[    9.730113] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0-56-cloud-amd64 #1  Debian 6.1.192-2\r
[    9.730113] Hardware name: QEMU Standard PC (i440FX + PIIX, 1996), BIOS 1.16.2 04/01/2014\r
[    9.730113] RIP: 0010:read_tsc+0x0/0x20\r
[    9.730113] Code: 00 00 00 66 90 0f ae e8 0f 31 48 c1 e2 20 48 09 d0 c3 cc cc cc cc 0f 1f 44 \
00 00 <0f> 01 f9 66 90 48 c1 e2 20 48 09 d0 c3 cc cc cc cc\r
[    9.730113] RSP: 0018:ffffa5d0c0003f70 EFLAGS: 00010046\r
[    9.730113] Call Trace:\r
[    9.730113]  <IRQ>\r
[    9.730113]  ktime_get+0x38/0xa0\r
[    9.730113] ---[ end trace 0000000000000000 ]---\r
[    9.730113] RIP: 0010:other_place+0x1/0x2\r
[    9.730113] Kernel panic - not syncing: Fatal exception in interrupt\r
[    9.730113] Kernel Offset: 0x2a000000 from 0xffffffff81000000\r
[    9.730113] ---[ end Kernel panic - not syncing: Fatal exception in interrupt ]---\r
"""


def test_a_panic_tells_the_instruction_of_the_oops_before_it() -> None:
    death = find_death(READ_TSC)
    assert death is not None
    assert death.kind is Kind.PANIC
    assert death.headline == "Kernel panic - not syncing: Fatal exception in interrupt"
    assert death.trap == "invalid opcode"
    assert death.symbol == "read_tsc+0x0/0x20"
    assert death.code[death.offset :].startswith(bytes.fromhex("0f01f9"))
    assert (death.program, death.kernel) == ("init", "6.1.0-56-cloud-amd64")
    assert not death.user
    assert any("RIP: 0010:read_tsc" in line for line in death.lines)
    assert not any("payload up" in line for line in death.lines)


@pytest.mark.parametrize(
    ("header", "trap"),
    [
        ("invalid opcode: 0000 [#1] SMP PTI", "invalid opcode"),
        ("Oops: invalid opcode: 0000 [#1] PREEMPT SMP NOPTI", "invalid opcode"),
        ("general protection fault: 0000 [#1] SMP", "general protection fault"),
        ("PANIC: double fault: 0000 [#1] SMP", "PANIC: double fault"),
    ],
)
def test_an_oops_of_old_and_new_kernels(header: str, trap: str) -> None:
    text = f"""\
[   12.000001][  T311] {header}
[   12.000002][  T311] CPU: 1 UID: 0 PID: 311 Comm: kworker/u4:2 Not tainted 6.12.9-amd64 #1
[   12.000003][  T311] RIP: 0010:xor_sse_2+0x5f/0x3b0 [xor]
[   12.000004][  T311] Code: 0f 11 <0f> 10 00
"""
    death = find_death(text.encode())
    assert death is not None
    assert (death.kind, death.trap) == (Kind.OOPS, trap)
    assert death.headline == header
    assert death.symbol == "xor_sse_2+0x5f/0x3b0"
    assert death.code[death.offset :] == b"\x0f\x10\x00"
    assert (death.program, death.kernel) == ("kworker/u4:2", "6.12.9-amd64")


def test_a_page_fault_has_its_sentence_before_the_header() -> None:
    death = find_death(
        b"[ 1.5] noise\n"
        b"[    1.500000] BUG: unable to handle page fault for address: 0000000000002a\n"
        b"[    1.500001] #PF: supervisor read access in kernel mode\n"
        b"[    1.500002] Oops: 0000 [#1] PREEMPT SMP\n[    1.500003] RIP: 0010:0xffffffff81234567\n"
    )
    assert death is not None
    assert death.headline.startswith("BUG: unable to handle page fault for address")
    assert death.ip == 0xFFFFFFFF81234567
    assert death.symbol == ""


@pytest.mark.parametrize(
    ("line", "program", "trap", "ip"),
    [
        (
            "traps: payload[12] trap invalid opcode ip:401b3c sp:7ffc error:0 in pay[4010+98]",
            "payload", "invalid opcode", 0x401B3C,
        ),
        (
            "traps: a payload[73] trap invalid opcode ip:401b3c sp:7ff error:0 in p[1b3c,4010+98]",
            "a payload", "invalid opcode", 0x401B3C,
        ),
        (
            "traps: worker:0[73] general protection fault ip:7f00 sp:7ffe error:0",
            "worker:0", "general protection fault", 0x7F00,
        ),
        (
            "sh[44]: segfault at 10 ip 00005581 sp 00007ffc error 4 in busybox[5581+90000]",
            "sh", "segfault", 0x5581,
        ),
    ],
)  # fmt: skip
def test_a_program_killed(line: str, program: str, trap: str, ip: int) -> None:
    death = find_death(f"hello\n[    7.000001] {line}\nbye\n".encode())
    assert death is not None
    assert death.kind is Kind.KILLED_BY_SIGNAL
    assert (death.program, death.trap, death.ip, death.user) == (program, trap, ip, True)
    assert death.headline == line
    assert death.lines == (line,)


def test_killing_init_is_a_panic_whose_cause_is_the_trap_of_init() -> None:
    death = find_death(
        b"[    5.1] x\n"
        b"[    5.100000] traps: init[1] trap invalid opcode ip:401b3c sp:7ffc error:0\n"
        b"[    5.100001] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004\n"
        b"[    5.100002] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0 #1\n"
    )
    assert death is not None
    assert (death.kind, death.trap, death.ip) == (Kind.PANIC, "invalid opcode", 0x401B3C)
    assert "Attempted to kill init!" in death.headline


def test_a_panic_without_cause_takes_its_own_registers() -> None:
    death = find_death(
        b"Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004\n"
        b"RIP: 0033:0x401b3c\nCode: 90 <f2> 0f 79 c1\n"
    )
    assert death is not None
    assert (death.ip, death.user, death.code[death.offset :]) == (
        0x401B3C, True, bytes.fromhex("f20f79c1"),
    )  # fmt: skip


def test_a_warning_and_ordinary_talk_kill_nobody() -> None:
    assert find_death(b"") is None
    assert (
        find_death(
            b"------------[ cut here ]------------\n"
            b"[    3.000000] WARNING: CPU: 0 PID: 1 at kernel/x.c:12 foo+0x1/0x2\n"
            b"[    3.000001] RIP: 0010:foo+0x1/0x2\n[    3.000002] Code: 00 <0f> 0b 00\n"
            b"[    3.000003] ---[ end trace 0000000000000000 ]---\n"
            b"[    3.1] traps: nothing to see\n[    3.2] i2c: error: 0000 [ok]\n"
        )
        is None
    )


def test_a_cut_dump_is_still_a_death() -> None:
    for cut in range(READ_TSC.index(b"[#1]") + 4, len(READ_TSC), 7):
        death = find_death(READ_TSC[:cut])
        assert death is not None
        assert death.trap == "invalid opcode"


def test_hostile_text_is_bounded_and_safe_to_print() -> None:
    evil = b"\x1b]0;owned\x07\x1b[2J" + b"A" * 100_000 + b"\n"
    flood = b"Code: " + b"<00> " * 5000 + b"\n" + b"RIP: " * 5000 + b"\n"
    death = find_death(
        evil * 20 + b"\x1b[31mKernel panic - not syncing: \x9b\x00h\x1b[0mi\n" + (flood + evil) * 20
    )
    assert death is not None
    assert death.headline.isprintable()
    assert all(line.isprintable() and len(line) <= 1024 for line in death.lines)
    assert len(death.lines) <= MAX_LINES
    assert death.code == b""


def test_every_window_of_noise_is_survived() -> None:
    noise = bytes(range(256)) * 40
    for begin, end in pairwise(range(0, len(noise), 97)):
        find_death(noise[begin:end])


@pytest.mark.parametrize(
    "line",
    [b"A" * 1000 + b" error [#1]", b"a: 0000 " * 120 + b" [#", b"x[1] a ip:" * 100 + b" error"],
)
def test_megabytes_of_near_misses_cost_little(line: bytes) -> None:
    begin = time.process_time()
    assert find_death((line + b"\n") * (MAX_BYTES // len(line))) is None
    assert time.process_time() - begin < 2  # 0.05 s here; a pattern that runs away takes minutes


DATA = Path(__file__).with_name("data")


def test_a_real_panic_of_a_guest_moved_from_phenom_to_nehalem() -> None:
    """Linux 6.1 of Debian 12 under QEMU 7.2 TCG, moved by plain QMP, without Isthmus."""
    death = find_death((DATA / "console-6.1-phenom-to-nehalem.txt").read_bytes())
    assert death is not None
    assert (death.kind, death.trap) == (Kind.PANIC, "invalid opcode")
    assert death.symbol == "read_tsc+0x0/0x20"
    assert death.code[death.offset :].startswith(b"\x0f\x01\xf9")
    assert (death.program, death.kernel) == ("swapper/0", "6.1.0-56-cloud-amd64")
    assert "invalid opcode: 0000 [#1]" in death.lines[0]


def test_real_programs_killed() -> None:
    """The same kernel: a program that executes UD2, another that writes to address 16."""
    first, *rest = (DATA / "console-6.1-killed.txt").read_bytes().splitlines(keepends=True)
    ud2 = find_death(first)
    assert ud2 is not None
    assert (ud2.kind, ud2.program, ud2.trap, ud2.ip) == (
        Kind.KILLED_BY_SIGNAL, "init", "invalid opcode", 0x4016CF,
    )  # fmt: skip
    segfault = find_death(b"".join(rest))
    assert segfault is not None
    assert (segfault.trap, segfault.ip) == ("segfault", 0x4016EE)
    assert segfault.code[segfault.offset :].startswith(bytes.fromhex("c7042510000000"))


def test_a_real_program_killed_with_its_registers_printed() -> None:
    """With kernel.print-fatal-signals the code stands below the registers, not on the next line."""
    death = find_death((DATA / "console-6.1-killed-with-registers.txt").read_bytes())
    assert death is not None
    assert (death.kind, death.program, death.trap) == (
        Kind.KILLED_BY_SIGNAL, "payload", "invalid opcode",
    )  # fmt: skip
    assert death.code[death.offset :].startswith(bytes.fromhex("660f79c1"))  # EXTRQ XMM0, XMM1
    assert "<66> 0f 79 c1" in death.lines[-1]


def test_a_long_dump_keeps_the_sentence_of_the_panic() -> None:
    filler = b"".join(b" function_%d+0x1/0x2\n" % number for number in range(200))
    death = find_death(b"invalid opcode: 0000 [#1]\n" + filler + READ_TSC[-260:] + filler)
    assert death is not None
    assert len(death.lines) <= MAX_LINES
    assert death.lines[0].startswith("invalid opcode")
    assert any(line.startswith("Kernel panic - not syncing") for line in death.lines)
