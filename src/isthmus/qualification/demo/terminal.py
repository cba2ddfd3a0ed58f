"""The demo on a terminal: what happens, each move as a bar, one screen of summary."""

from typing import Self

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from isthmus.qualification.demo.result import ActResult, DemoResult, MoveResult

_TITLES = {
    "without": "Act 1 - without Isthmus: plain QMP migration",
    "levelled": "Act 2 - levelled: there and back",
    "translated": "Act 3 - translated: an unlevelled guest lives",
}
_BAR_MS = 2.0  # milliseconds of downtime for one character


class TerminalDisplay:
    """Tells on the standard error, so that the standard output stays free for results."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = console.status("")

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def step(self, text: str) -> None:
        """Something that takes time begins."""
        self._status.update(text)
        if not self._console.is_terminal:
            self._console.print(f"  {text}", highlight=False, markup=False)

    def act(self, title: str) -> None:
        """An act begins."""
        self._console.print(Text(_TITLES[title], style="bold"))

    def moved(self, move: MoveResult) -> None:
        """A move has been done: its times, the downtime as a bar."""
        bar = "#" * max(1, min(40, round(move.downtime_ms / _BAR_MS)))
        count = sum(move.translated.values())
        tail = f"  {count} instructions translated" if count else ""
        self._console.print(
            Text(
                f"  {move.number:3} {move.source} -> {move.destination}"
                f"  total {move.total_ms:5.0f} ms  downtime {move.downtime_ms:5.1f} ms {bar}{tail}"
            )
        )

    def ended(self, act: ActResult) -> None:
        """An act has ended: its outcome, and for a death the console and the explanation."""
        for line in act.console[:14]:
            self._console.print(Text("    | " + line, style="dim"))
        style = "green" if act.ok else "red"
        self._console.print(Text(f"  {act.outcome}", style=style))
        if act.explanation:
            self._console.print(Text("  " + act.explanation))
        for fault in act.faults[:5]:
            self._console.print(Text("  ! " + fault, style="red"))


def summary(result: DemoResult) -> Panel:
    """The whole demo on one screen."""
    table = Table(box=None, pad_edge=False)
    for heading in ("act", "as expected", "moves", "downtime ms", "outcome"):
        table.add_column(heading)
    for act in result.acts:
        times = [move.downtime_ms for move in act.moves]
        table.add_row(
            act.title,
            "yes" if act.ok else "NO",
            str(len(act.moves)),
            f"{min(times):.0f}-{max(times):.0f}" if times else "-",
            Text(act.outcome),
        )
    title = f"{result.source} <-> {result.destination}, Linux {result.kernel}, QEMU {result.qemu}"
    verdict = "all as expected" if result.ok else "NOT as expected"
    return Panel(
        table,
        title=Text(title),
        subtitle=Text(f"{result.engine}: {verdict}, {result.seconds:.0f} s"),
    )
