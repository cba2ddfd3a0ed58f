"""What KVM refuses of a guest's state while QEMU goes on is seen before the guest runs."""

import pytest

from isthmus.migration.arrival import lost

RUNNING = """
CPU#0
RAX=0000000000000001 RBX=ffff888003a00000 RCX=0000000000000000 RDX=0000000000000000
RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP=ffffffff82403e80
R8 =0000000000000000 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000000
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000000000
RIP=ffffffff81c0b3ab RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 ffffffff 00c00000
CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]
TR =0040 fffffe0000003000 00004087 00008b00 DPL=0 TSS64-busy
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007f0000000000 CR3=0000000002610000 CR4=003506f0
DR6=00000000ffff0ff0 DR7=0000000000000400
CCS=0000000000000044 CCD=0000000000000000 CCO=EFLAGS
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000

CPU#1
RAX=0000000000000002 RIP=ffffffff81c0b3ab RFL=00000246 [---Z-P-] CPL=0 HLT=1
CR0=80050033 CR2=0000000000000000 CR3=0000000002610000 CR4=003506f0
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00021f80
"""

# What a vCPU has after its reset (Intel SDM vol. 3A, table 10-1).
RESET = """
CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00800f12
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
"""


def test_all_arrived() -> None:
    assert lost(RUNNING, RUNNING) == ""


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("CR4=003506f0", "CR4=00000000", "vCPU 0 CR4 is 00000000 instead of 003506f0"),
        ("MXCSR=00021f80", "MXCSR=00001f80", "vCPU 1 MXCSR is 00001f80 instead of 00021f80"),
        ("RIP=ffffffff81c0b3ab", "RIP=000000000000fff0", "vCPU 0 RIP"),
        ("GDT=     fffffe0000001000", "GDT=     0000000000000000", "vCPU 0 GDT"),
        ("RFL=00000246", "RFL=00000002", "vCPU 0 RFL"),
        ("R9 =0000000000000000", "R9 =0000000000000001", "vCPU 0 R9"),
    ],
)
def test_what_did_not_arrive_is_named(before: str, after: str, told: str) -> None:
    assert told in lost(RUNNING, RUNNING.replace(before, after))


def test_a_vcpu_that_was_only_reset_is_told_shortly() -> None:
    said = lost(RUNNING, RESET)
    assert said.startswith("vCPU 0 CR4 is 00000000 instead of 003506f0")
    assert said.count("instead of") == 4
    assert said.endswith("more")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ffffffff 00c00000", "00000000 00000000"),  # the makers' null segments
        ("00004087 00008b00", "00004087 00008900"),  # the busy bit of TR
        ("CCO=EFLAGS", "CCO=ADDQ"),
        ("RFL=00000246", "RFL=00010246"),  # the resume flag
        ("HLT=1", "HLT=0"),
    ],
)  # fmt: skip
def test_what_the_makers_keep_otherwise_is_no_loss(before: str, after: str) -> None:
    assert lost(RUNNING, RUNNING.replace(before, after)) == ""


@pytest.mark.parametrize("said", ["", "unknown command: 'info'\r\n", "CPU#0\n"])
def test_a_qemu_that_tells_nothing_is_no_reason_to_turn_back(said: str) -> None:
    assert lost(RUNNING, said) == ""
