"""The demo on a terminal: what happens now, each move as a bar, and one screen of summary.

What comes from a guest is printed as plain text, never as markup.
"""

import re
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from isthmus.baseline.identity import maker
from isthmus.migration.options import Progress
from isthmus.qualification.demo.result import (
    TITLES,
    ActName,
    ActResult,
    DemoResult,
    MoveResult,
    Outcome,
    spread,
)

_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR = 24  # characters of the longest bar
_BAR_MS = 25.0  # the downtime that fills it, unless a longer one has been seen
_ROWS = 20  # moves that get a row of their own on a terminal; more are drawn as a line
_TRAP = re.compile(r"\[#\d+\]|\btrap |segfault at|BUG:")
_PLACE = re.compile(r"^RIP: |^Code: .*<")
_PANIC = re.compile(r"^Kernel panic - not syncing")
_FATES = {
    Outcome.PANIC: "the guest dies: ",
    Outcome.OOPS: "the guest's kernel fails: ",
    Outcome.KILLED: "the guest's program dies: ",
}
_BYTES = 8  # of the code that are shown on each side of the faulting one


class TerminalDisplay:
    """Shows the demo as it happens: lines that stay, and below them what is being done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._doing = ""
        self._moving = ""
        self._moves: list[MoveResult] = []

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def step(self, text: str) -> None:
        """Something that takes time begins."""
        self._doing, self._moving = text, ""
        if self._console.is_terminal:
            self._draw()
        else:
            self._say(Text(f"  {text} …", style="dim"))

    def act(self, name: ActName) -> None:
        """An act begins."""
        self._moves = []
        self._say(Text(f"\nAct {list(ActName).index(name) + 1}: {TITLES[name]}", style="bold"))

    def progress(self, progress: Progress) -> None:
        """A move has come further."""
        transfer = progress.transfer
        if transfer is None or not transfer.total:
            self._moving = progress.phase.value
        else:
            share = 100 * (transfer.total - transfer.remaining) / transfer.total
            self._moving = f"{progress.phase.value} {share:.0f} %"
        if self._console.is_terminal:
            self._draw()

    def moved(self, move: MoveResult) -> None:
        """A move has been done: its times, the downtime as a bar."""
        self._moves.append(move)
        if move.number <= _ROWS or not self._console.is_terminal:
            self._say(_row(move))
        elif self._console.is_terminal:
            self._draw()

    def ended(self, act: ActResult) -> None:
        """An act has ended: what happened; for a death the guest's own words and the reason."""
        if act.name is ActName.WITHOUT or not act.ok:
            for line in telling(act.console):
                self._say(_cut(Text(f"  │ {line}", style="yellow")))
        self._console.print(Padding(_mark(act, Text(_said(act))), (0, 0, 0, 2)))
        if act.explanation:
            self._console.print(Padding(Text(act.explanation), (0, 0, 0, 4)))
        for fault in act.faults[:5] if not act.ok else ():
            self._say(Text(f"    ! {fault}", style="red"))
        self._doing = ""

    def _say(self, line: Text) -> None:
        self._console.print(line, highlight=False)

    def _draw(self) -> None:
        rows: list[RenderableType] = []
        if len(self._moves) > _ROWS:
            width = max(10, self._console.width - 24)
            rows.append(Text(f"  downtime {sparkline(self._moves, width)}", style="cyan"))
        if self._doing:
            doing = f" {self._doing}" + (f" ({self._moving})" if self._moving else "")
            rows.append(Spinner("dots", Text(doing)))
        self._live.update(Group(*rows), refresh=True)


def summary(result: DemoResult, report: str = "") -> Panel:
    """The whole demo on one screen."""
    verdict = (
        Text("all as expected", style="bold green")
        if result.ok
        else Text("NOT as expected", style="bold red")
    )
    body: list[RenderableType] = [
        Text(
            f"{result.source.name} ({maker(result.source.vendor)}) ⇄ {result.destination.name}"
            f" ({maker(result.destination.vendor)}); Linux {result.kernel};"
            f" QEMU {result.qemu}, {result.engine.upper()}",
            style="dim",
        )
    ]
    for act in result.acts:
        body += [
            Text(""),
            _mark(act, Text.assemble((act.title, "bold"), ": ", _said(act))),
            *_details(act),
        ]
    body += [
        Text(""),
        Text.assemble(
            verdict,
            f" in {result.seconds:.0f} s",
            f" (set-up {result.setup_s:.0f} s)" if result.setup_s >= 1 else "",
            f"; report: {report}" if report else "",
        ),
    ]
    return Panel(Group(*body), title="Isthmus: live migration between makers", padding=(0, 1))


def _details(act: ActResult) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if act.name is ActName.WITHOUT:
        lines += [_cut(Text(f"│ {line}", style="yellow")) for line in telling(act.console)]
        lines += [Text(act.explanation)] if act.explanation else []
    if act.name is ActName.LEVELLED and act.moves:
        lines.append(_figures(act.moves))
        lines.append(Text(f"downtime of each move  {sparkline(act.moves, 44)}", style="cyan"))
    if act.name is ActName.TRANSLATED:
        lines += [
            Text(f"on {move.destination}: {counted(move)}", style="cyan")
            for move in act.moves
            if move.translated
        ]
    if not act.ok:
        lines += [Text(f"! {fault}", style="red") for fault in act.faults[:3]]
    return [Padding(line, (0, 0, 0, 2)) for line in lines]


def _figures(moves: Sequence[MoveResult]) -> Table:
    """Least, median and greatest of each figure."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for heading in ("least", "median", "greatest"):
        table.add_column(heading, justify="right")
    for name, values in (
        ("downtime by QEMU, ms", [move.downtime_ms for move in moves]),
        ("stopped to resumed, ms", [move.stopped_ms for move in moves]),
        ("gap the guest saw, ms", [move.guest_gap_ms for move in moves]),
        ("whole move, ms", [move.total_ms for move in moves]),
    ):
        found = spread(values)
        if found is not None:
            numbers = (found.least, found.median, found.greatest)
            table.add_row(name, *(f"{number:.0f}" for number in numbers))
    return table


def sparkline(moves: Sequence[MoveResult], width: int) -> str:
    """The downtimes as a line of blocks, the latest at the right, with the highest named."""
    latest = [move.downtime_ms for move in moves[-width:]]
    highest = max([*latest, 1.0])
    blocks = "".join(_BLOCKS[round(value / highest * (len(_BLOCKS) - 1))] for value in latest)
    return f"{blocks}  (█ = {highest:.0f} ms)"


def counted(move: MoveResult) -> str:
    """What was translated at the destination, the most frequent first."""
    pairs = sorted(move.translated.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {count}" for name, count in pairs)


def telling(console: Sequence[str]) -> tuple[str, ...]:
    """The lines of a death that tell most: the trap, where it was, the bytes there, the panic."""
    trap = next((at for at, line in enumerate(console) if _TRAP.search(line)), None)
    found = []
    if trap is not None:
        found.append(console[trap])
        for line in console[trap + 1 :]:
            if _TRAP.search(line) or _PANIC.match(line):
                break
            if _PLACE.match(line):
                found.append(_around(line))
            if line.startswith("Code: "):
                break
    found += [line for line in console if _PANIC.match(line)][:1]
    return tuple(found)


def _around(line: str) -> str:
    """A line of code bytes cut to those around the faulting one; any other line as it is."""
    words = line.split()
    at = next((number for number, word in enumerate(words) if word.startswith("<")), None)
    if words[0] != "Code:" or at is None:
        return line
    begin, end = max(1, at - _BYTES), at + 1 + _BYTES
    cut = ["Code:", *(["…"] if begin > 1 else []), *words[begin:end]]
    return " ".join([*cut, *(["…"] if end < len(words) else [])])


def _row(move: MoveResult) -> Text:
    share = min(1.0, move.downtime_ms / _BAR_MS)
    bar = "█" * max(1, round(share * _BAR))
    row = Text.assemble(
        f"  {move.number:3} {move.source} → {move.destination}",
        f" {move.total_ms:5.0f} ms, down {move.downtime_ms:3.0f} ms ",
        (bar, "cyan"),
    )
    if move.translated:
        row.append(f" {sum(move.translated.values())} translated", style="magenta")
    return _cut(row)


def _cut(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _mark(act: ActResult, text: Text) -> Text:
    return Text.assemble(("✓ ", "green") if act.ok else ("✗ ", "red"), text)


def _said(act: ActResult) -> str:
    return f"{_FATES.get(act.outcome, '')}{act.headline}"
