"""The demo's report: one HTML file that needs nothing else, drawn as inline SVG.

Everything that comes from a guest or a command line is escaped: a console is hostile text.
"""

from collections.abc import Sequence
from html import escape

from isthmus.qualification.demo.result import ActResult, DemoResult, MoveResult

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{margin-top:2.2rem;border-bottom:1px solid #d0d7de}
pre{background:#f6f8fa;padding:.8rem;overflow-x:auto;font-size:12px;white-space:pre-wrap}
table{border-collapse:collapse;font-size:13px}
td,th{padding:.2rem .6rem;border:1px solid #d0d7de;text-align:left}
.ok{color:#1a7f37}.bad{color:#cf222e}.num{text-align:right}svg{max-width:100%}
"""
_WIDTH, _HEIGHT, _LEFT = 760, 190, 46


def html(result: DemoResult) -> str:
    """The report as one HTML document."""
    verdict = ("ok", "all as expected") if result.ok else ("bad", "not as expected")
    source, destination = escape(result.source), escape(result.destination)
    acts = "\n".join(_act(act) for act in result.acts)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in result.level_reasons)
    return f"""<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content="width=device-width,initial-scale=1">
<title>Isthmus: {source} and {destination}</title><style>{_STYLE}</style>
<h1>{source} &harr; {destination}: <span class={verdict[0]}>{verdict[1]}</span></h1>
<p>Linux {escape(result.kernel)}, QEMU {escape(result.qemu)} with {escape(result.engine)}
({escape(result.engine_reason)}), {result.seconds:.0f} s.</p>
<h2>Timeline</h2>
{_timeline(result.acts)}
{acts}
<h2>What differs</h2>
<p>Only {source}: {escape(", ".join(result.only_source) or "nothing")}.</p>
<p>Only {destination}: {escape(", ".join(result.only_destination) or "nothing")}.</p>
<h2>The level of both</h2><pre>-cpu {escape(result.level)}</pre><ul>{reasons}</ul></html>
"""


def _act(act: ActResult) -> str:
    verdict = "ok" if act.ok else "bad"
    parts = [
        f"<h2>{escape(act.title)}</h2>",
        f"<p class={verdict}>{escape(act.outcome)}</p>",
    ]
    if act.explanation:
        parts.append(f"<p>{escape(act.explanation)}</p>")
    if act.console:
        parts.append(f"<pre>{escape(chr(10).join(act.console))}</pre>")
    if act.moves:
        parts += [_plot(act.moves), _table(act.moves)]
    if act.faults:
        parts.append(f"<pre class=bad>{escape(chr(10).join(act.faults))}</pre>")
    for host, command in act.commands.items():
        parts.append(
            f"<details><summary>QEMU on {escape(host)}</summary>"
            f"<pre>{escape(command)}</pre></details>"
        )
    return "\n".join(parts)


def _plot(moves: Sequence[MoveResult]) -> str:
    """Downtime of each move as a bar."""
    highest = max([move.downtime_ms for move in moves] + [1.0])
    room = _WIDTH - _LEFT
    step = room / len(moves)
    bars = []
    for index, move in enumerate(moves):
        height = (_HEIGHT - 40) * move.downtime_ms / highest
        x = _LEFT + index * step
        bars.append(
            f"<rect x='{x:.1f}' y='{_HEIGHT - 20 - height:.1f}' width='{max(1.0, step * 0.7):.1f}'"
            f" height='{height:.1f}' fill='{'#0969da' if index % 2 else '#bf3989'}'><title>"
            f"{escape(move.source)} to {escape(move.destination)}: {move.downtime_ms:.1f} ms"
            "</title></rect>"
        )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role=img aria-label='downtime of each move'>"
        f"<text x=0 y=14 font-size=12>{highest:.0f} ms</text>"
        f"<text x=0 y={_HEIGHT - 20} font-size=12>0</text>{''.join(bars)}"
        f"<line x1={_LEFT} x2={_WIDTH} y1={_HEIGHT - 20} y2={_HEIGHT - 20} stroke='#57606a'/>"
        f"<text x={_LEFT} y={_HEIGHT - 4} font-size=12>downtime of each move</text></svg>"
    )


def _table(moves: Sequence[MoveResult]) -> str:
    headings = (
        "move", "from", "to", "total ms", "downtime ms", "stopped ms", "guest's gap ms",
        "silence ms", "MiB", "translated",
    )  # fmt: skip
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(cell)}</td>"
            for cell in (
                str(move.number),
                move.source,
                move.destination,
                f"{move.total_ms:.0f}",
                f"{move.downtime_ms:.1f}",
                _number(move.stopped_ms),
                _number(move.guest_gap_ms),
                _number(move.silence_ms),
                f"{move.moved_bytes / 2**20:.0f}",
                ", ".join(f"{name} {count}" for name, count in sorted(move.translated.items())),
            )
        )
        + "</tr>"
        for move in moves
    )
    return (
        "<table><tr>"
        + "".join(f"<th>{escape(text)}</th>" for text in headings)
        + f"</tr>{rows}</table>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _timeline(acts: Sequence[ActResult]) -> str:
    """The acts one after the other, in the proportion of their lengths."""
    whole = sum(act.seconds for act in acts) or 1.0
    x = 0.0
    parts = []
    for act in acts:
        width = _WIDTH * act.seconds / whole
        colour = "#2da44e" if act.ok else "#cf222e"
        parts.append(
            f"<rect x='{x:.1f}' y=4 width='{max(1.0, width - 2):.1f}' height=26 rx=3"
            f" fill='{colour}'/>"
            f"<text x='{x + 6:.1f}' y=22 font-size=12 fill=white>{escape(act.title)},"
            f" {act.seconds:.0f} s</text>"
        )
        x += width
    return f"<svg viewBox='0 0 {_WIDTH} 34' role=img aria-label=timeline>{''.join(parts)}</svg>"
