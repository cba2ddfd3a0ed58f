"""The demo's report: one HTML file that needs nothing else; plots are inline SVG.

Whatever comes from a guest, a command line or QEMU is escaped: a console is hostile text.
"""

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from isthmus.divergence.finding import Finding
from isthmus.qualification.demo import plots
from isthmus.qualification.demo.result import (
    ActName,
    ActResult,
    DemoResult,
    HostFacts,
    MoveResult,
    spread,
)
from isthmus.qualification.demo.terminal import counted


def html(result: DemoResult) -> str:
    """The report as one HTML document."""
    style = resources.files("isthmus.qualification.demo").joinpath("report.css").read_text()
    names = escape(f"{result.source.name} and {result.destination.name}")
    verdict = _verdict(result.ok, "All as expected", "Not as expected")
    acts = "\n".join(map(_act, result.acts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Isthmus: {names}</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="brand">Isthmus {escape(result.isthmus)} · live migration between makers</p>
<h1>{names}</h1>
<p>{verdict}</p>
{_facts(result)}
</header>
<section>
<h2>Time line</h2>
<p class="legend">{_key("source", result.source)} {_key("destination", result.destination)}</p>
{plots.timeline(result.acts, result.source.name)}
</section>
{acts}
<section>
<h2>How the two processors differ</h2>
<p>As QEMU offers them under {escape(result.engine)}. What a guest learnt at boot and the other
host lacks is what kills it there.</p>
{_differences(result.source, result.destination)}
{_differences(result.destination, result.source)}
<h3>Their level</h3>
<pre>-cpu {escape(result.level)}</pre>
{_list(result.level_reasons)}
</section>
<section>
<h2>QEMU command lines</h2>
{"".join(_commands(act) for act in result.acts)}
</section>
</body>
</html>
"""


def _facts(result: DemoResult) -> str:
    rows = [
        ("Performed", f"{result.began}, in {result.seconds:.0f} s"),
        ("Engine", f"{result.engine}: {result.engine_reason}"),
        ("QEMU", result.qemu),
        ("Guest", f"Linux {result.kernel}"),
        ("Source", f"{result.source.name}: {result.source.vendor}, {result.source.brand}"),
        (
            "Destination",
            f"{result.destination.name}: {result.destination.vendor}, {result.destination.brand}",
        ),
    ]
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
    return f"<dl>{cells}</dl>"


def _act(act: ActResult) -> str:
    parts = [
        "<section>",
        f"<h2>{escape(act.title)}</h2>",
        f"<p>{_verdict(act.ok, 'As expected', 'Not as expected')}: {escape(act.headline)}</p>",
    ]
    if act.explanation:
        parts.append(f"<p>{escape(act.explanation)}</p>")
    if act.name is not ActName.WITHOUT and act.moves:
        parts.append(plots.downtimes(act.moves))
    if act.moves:
        parts.append(_moves(act.moves, act.name is ActName.TRANSLATED))
    if act.instructions:
        parts.append(_details("What its program executed", _counts(act.instructions.items())))
    if act.findings:
        parts.append(_details("What preflight found", _findings(act.findings)))
    if act.faults:
        heading = f"What the payload reported ({len(act.faults)})"
        parts.append(_details(heading, _pre(act.faults), opened=not act.ok))
    if act.console:
        opened = act.name is ActName.WITHOUT or not act.ok
        parts.append(_details("The guest's console", _pre(act.console), opened=opened))
    parts.append("</section>")
    return "\n".join(parts)


def _moves(moves: Sequence[MoveResult], with_translation: bool) -> str:
    headings = [
        "move", "from", "to", "whole move ms", "downtime ms (QEMU)", "stopped to resumed ms",
        "gap the guest saw ms", "silence ms", "moved MiB",
    ]  # fmt: skip
    if with_translation:
        headings += ["translated", "µs each"]
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    rows = "".join(_row(move, with_translation) for move in moves)
    foot = _spreads(moves, with_translation) if len(moves) > 2 else ""
    table = f"<table><thead><tr>{head}</tr></thead>{foot}<tbody>{rows}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


def _row(move: MoveResult, with_translation: bool) -> str:
    cells = [
        str(move.number),
        move.source,
        move.destination,
        *map(_number, _figures(move)),
        f"{move.moved_bytes / (1 << 20):.1f}",
    ]
    if with_translation:
        cells += [counted(move), _number(move.us_per_instruction)]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _spreads(moves: Sequence[MoveResult], with_translation: bool) -> str:
    """Least, median and greatest of each figure."""
    columns = [spread(column) for column in zip(*map(_figures, moves), strict=True)]
    rows = []
    for name in ("least", "median", "greatest"):
        cells = "".join(
            f"<td>{_number(getattr(column, name)) if column else ''}</td>" for column in columns
        )
        empty = "<td></td>" * (3 if with_translation else 1)
        rows.append(f'<tr><th colspan="3">{name}</th>{cells}{empty}</tr>')
    return f"<tfoot>{''.join(rows)}</tfoot>"


def _figures(move: MoveResult) -> tuple[float | None, ...]:
    return (
        move.total_ms,
        move.downtime_ms,
        move.stopped_ms,
        move.guest_gap_ms,
        move.silence_ms,
    )


def _findings(findings: Iterable[Finding]) -> str:
    rows = "".join(
        f"<tr><td>{escape(finding.severity.value)}</td><td>{escape(finding.subject)}</td>"
        f"<td>{escape(finding.notice)}</td><td>{escape(finding.source)}</td></tr>"
        for finding in findings
    )
    return (
        '<div class="scroll"><table class="text"><thead><tr><th></th><th>about</th>'
        f"<th>what the guest would notice</th><th>source</th></tr></thead>{rows}</table></div>"
    )


def _differences(host: HostFacts, other: HostFacts) -> str:
    words = " ".join(f"<code>{escape(name)}</code>" for name in host.only) or "nothing"
    return f"<p>{escape(host.name)} has, and {escape(other.name)} lacks: {words}</p>"


def _commands(act: ActResult) -> str:
    return "".join(
        f"<h3>{escape(act.title)}: {escape(command.host)}</h3>"
        f"<pre>{escape(shlex.join(command.arguments))}</pre>"
        for command in act.commands
    )


def _counts(items: Iterable[tuple[str, int]]) -> str:
    return (
        "<p>" + " ".join(f"<code>{escape(name)} {count}</code>" for name, count in items) + "</p>"
    )


def _key(kind: str, host: HostFacts) -> str:
    return f'<span class="key {kind}"></span>{escape(host.name)} ({escape(host.vendor)})'


def _verdict(ok: bool, good: str, bad: str) -> str:
    return f'<strong class="{"good" if ok else "bad"}">{good if ok else bad}</strong>'


def _details(summary: str, body: str, *, opened: bool = False) -> str:
    state = " open" if opened else ""
    return f"<details{state}><summary>{escape(summary)}</summary>{body}</details>"


def _pre(lines: Sequence[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
