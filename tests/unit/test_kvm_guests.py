"""What guests of the KVM lab say of themselves is believed only if all of it is right."""

import itertools
import subprocess
import time
from pathlib import Path

import pytest

from isthmus.places import cache_folder
from isthmus.qualification.kvm.cases import failure_3_entries as entries
from isthmus.qualification.kvm.cases import failure_6_modes as modes
from isthmus.qualification.kvm.guests import entry_program


def _sums_by_steps(lines: int) -> list[int]:
    """The sums as the guest makes them, entry by entry."""
    total, sums = 1, []
    for _ in range(lines):
        for _, entry in itertools.product(range(2 * 256), range(256)):
            total = (total * 1664525 + entry * 0x9E3779B1) & 0xFFFFFFFF
        sums.append(total)
    return sums


def _life(lines: int) -> list[str]:
    sums = itertools.islice(modes._sums(), lines)
    return [
        f"real   {256 * n:08x} {s:08x} 00000003 00000000 00000000" for n, s in enumerate(sums, 1)
    ]


def test_the_sums_are_those_of_the_steps() -> None:
    assert list(itertools.islice(modes._sums(), 3)) == _sums_by_steps(3)


def test_a_guest_that_is_right_is_counted_and_its_last_half_line_waited_for() -> None:
    text = "\n".join(["SeaBIOS", "", *_life(4)]) + "\nreal   0000"
    life = modes.read_life(text, "real")
    assert life.lines == 4
    assert life.faults == 3
    assert not life.wrong


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda lines: lines[:1] + lines[2:], "counted 768"),
        (lambda lines: [*lines[:2], lines[2].replace(" 00000000", " 00000001", 1)], "not as"),
        (lambda lines: [*lines, lines[-1]], "counted"),
        (lambda lines: [*lines[:1], lines[1][:10] + "0" + lines[1][10:]], "said"),
        (lambda lines: [line.replace("real  ", "long  ") for line in lines], "said"),
        (lambda lines: [lines[0], lines[1][:16] + "12345678" + lines[1][24:]], "summed"),
    ],
    ids=["lost", "spoilt", "repeated", "torn", "another mode", "wrong sum"],
)
def test_what_is_not_right_is_found(change, wrong) -> None:
    assert wrong in modes.read_life("\n".join(change(_life(3))) + "\n", "real").wrong


def test_a_program_serves_itself_and_is_judged(tmp_path: Path) -> None:
    """By INT 80h, which every kernel with IA-32 emulation has."""
    program = tmp_path / "int80"
    program.write_bytes(entry_program(cache_folder(), "int80"))
    program.chmod(0o755)
    try:
        running = subprocess.Popen([program], stdout=subprocess.PIPE)
    except OSError:
        pytest.skip("no 32-bit programs here")
    said = ""
    deadline = time.monotonic() + 120
    while said.count("\n") < 3 and running.poll() is None and time.monotonic() < deadline:
        said += running.stdout.readline().decode()
    if running.poll() is not None:
        pytest.skip("no 32-bit programs here")
    running.kill()
    running.wait()
    running.stdout.close()
    told = entries.read_programs(said)["int80"]
    assert (told.lines, told.rounds, told.faults, told.wrong) == (3, 12, 0, "")
    spoilt = said.replace("0000000c ", "0000000d ")
    assert "summed" in entries.read_programs(spoilt)["int80"].wrong


def test_a_program_that_its_kernel_never_let_in_has_only_faults() -> None:
    told = entries.read_programs(
        "entry syscall  00000004 00000001 00000004\nentry syscall  00000008 00000001 00000008\n"
    )["syscall"]
    assert told.faults == told.rounds == 8
    assert not told.wrong


def test_a_program_that_goes_back_is_wrong() -> None:
    text = "".join(f"entry vdso     {n:08x} 00000001 {n:08x}\n" for n in (8, 4))
    assert "counted 4" in entries.read_programs(text)["vdso"].wrong


def said(*totals: int) -> int:
    """What a program sums up that was let in for these calls: 0, 1 or 2 by their place."""
    total = 1
    for call in totals:
        total = (total * 1664525 + (1, 1, 1 - 22)[call]) & 0xFFFFFFFF
    return total


def test_a_round_that_a_signal_cut_short_may_be_any_of_them() -> None:
    for first in ((), (0,), (0, 1)):
        total = said(*first, 0, 1, 2, 0, 1, 2, 0, 1, 2)
        text = f"entry vdso     00000004 {total:08x} 00000001\n"
        assert not entries.read_programs(text)["vdso"].wrong
    total = said(2, 0, 1, 2, 0, 1, 2, 0, 1, 2)
    text = f"entry vdso     00000004 {total:08x} 00000001\n"
    assert "summed" in entries.read_programs(text)["vdso"].wrong


def test_a_stack_of_16_bits_is_told_from_other_faults() -> None:
    line = "entry sysenter 00000004 a08b4e25 00000001\n"
    cut = "fault sysenter 0000000e 00000004 f7f32559 0000789c f7f32550\n"
    told = entries.read_programs(cut + line)["sysenter"]
    assert (told.faults, told.cut, told.wrong) == (1, 1, "")
    other = "fault sysenter 0000000e 00000004 f7f32559 ffa1789c f7f32550\n"
    assert entries.read_programs(other + line)["sysenter"].cut == 0
    illegal = "fault sysenter 00000006 00000000 080491f7 00000000 f7fd55e0\n"
    assert entries.read_programs(illegal + line)["sysenter"].cut == 0
