"""What the demo shows on a terminal."""

import io

import pytest
from demo_results import PANIC, levelled, move, result, translated, without
from rich.console import Console

from isthmus.qualification.demo.result import ActName, Outcome, spread
from isthmus.qualification.demo.terminal import TerminalDisplay, sparkline, summary, telling


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def console(width: int = 80, *, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, height=24, force_terminal=terminal)


def test_the_summary_fits_one_screen() -> None:
    page = console(80)
    page.print(summary(result(), "isthmus-demo.html"))
    lines = shown(page).splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= 80
    for said in ("all as expected", "RDTSCP 4410", "It died at RDTSCP", "isthmus-demo.html"):
        assert said in shown(page)


def test_the_summary_says_what_went_wrong() -> None:
    lived = without(ok=False, outcome=Outcome.LIVED, headline="the guest lives", console=())
    wrong = levelled(3, ok=False, outcome=Outcome.WRONG, faults=("memory: page 7",))
    page = console()
    page.print(summary(result(lived, wrong)))
    assert "NOT as expected" in shown(page)
    assert "the guest lives" in shown(page)
    assert "memory: page 7" in shown(page)


def test_the_telling_lines_of_a_death() -> None:
    assert telling(PANIC) == (
        PANIC[0],
        PANIC[1],
        "Code: … 0f 1f 84 00 00 00 00 00 <0f> 01 f9 66 90 48 c1 e2 20 …",
        PANIC[-1],
    )
    assert telling(()) == ()
    assert telling(("isthmus: guest is up",)) == ()
    killed = (
        "traps: payload[92] trap invalid opcode ip:403806 sp:7ffc error:0 in payload[401000+92000]",
        "RIP: 0033:0x403806",
        "Code: 00 <66> 0f 79 c1",
    )
    assert telling(killed) == killed


def test_a_guest_cannot_format_our_terminal() -> None:
    hostile = "[bold red]Kernel panic[/bold red] [link=file:///etc/passwd]x[/link]"
    act = without(headline=hostile, explanation=hostile, console=(f"trap {hostile}",))
    page = console(200, terminal=True)
    with TerminalDisplay(page) as display:
        display.act(ActName.WITHOUT)
        display.ended(act)
    page.print(summary(result(act)))
    assert shown(page).count("[link=file:///etc/passwd]") >= 4


@pytest.mark.parametrize("terminal", [False, True])
def test_every_move_is_told_as_it_happens(terminal: bool) -> None:
    page = console(80, terminal=terminal)
    with TerminalDisplay(page) as display:
        display.act(ActName.LEVELLED)
        display.step("move 1 of 2: to Penryn")
        display.moved(move(1))
        display.moved(move(2, downtime_ms=123.0))
        display.ended(levelled(2))
    assert "phenom → Penryn" in shown(page)
    assert "down 123 ms" in shown(page)
    assert "move 1 of 2" in shown(page)


def test_two_hundred_moves_do_not_flood_a_terminal() -> None:
    page = console(80, terminal=True)
    with TerminalDisplay(page) as display:
        display.act(ActName.LEVELLED)
        for number in range(1, 201):
            display.moved(move(number))
    assert shown(page).count(" ms, down ") == 20
    assert "█" * 30 in shown(page)


def test_sparkline() -> None:
    moves = [move(n, downtime_ms=float(n)) for n in range(8)]
    assert sparkline(moves, 80) == "▁▂▃▄▅▆▇█  (█ = 7 ms)"
    assert sparkline(moves, 3) == "▆▇█  (█ = 7 ms)"
    assert sparkline([move(1, downtime_ms=0.0)], 10) == "▁  (█ = 1 ms)"


def test_spread() -> None:
    found = spread([3.0, None, 1.0, 2.0])
    assert found is not None
    assert (found.least, found.median, found.greatest) == (1.0, 2.0, 3.0)
    assert spread([None]) is None


def test_translated_counts_are_in_the_summary_only_where_there_are_some() -> None:
    page = console()
    page.print(summary(result(translated())))
    assert shown(page).count("on Penryn: ") == 1
    assert "on phenom: " not in shown(page)
