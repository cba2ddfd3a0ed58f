"""The page of ``isthmus compare --html``: one file that needs nothing else.

A heat map of every ordered pair, a table of features, and for each pair its findings with the rules
they come from.  Names of hosts are hostile text and escaped.
"""

from collections.abc import Iterable
from html import escape

from isthmus.divergence.comparison import Comparison, Direction, Meaning
from isthmus.divergence.finding import Severity
from isthmus.divergence.rules import rules

_MAX_DETAILED = 400
"""Pairs whose findings are written out; a page of more would be too heavy for a browser."""

_WORDS = {
    None: "same", Severity.NOTE: "fine", Severity.TRANSLATE: "translates", Severity.WARN: "warns",
    Severity.REFUSE: "refused",
}  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --line: #8884; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; }
td.cell { text-align: center; color: #111; min-width: 4.5rem; }
td.cell a { color: inherit; text-decoration: none; display: block; }
.same, .fine, .has { background: #b7e1c0; } .translates { background: #bcd7f5; }
.warns { background: #f8e3a3; } .refused { background: #f2b0a6; } .self { background: #8882; }
details { margin: .3rem 0; } summary { cursor: pointer; }
.severity { font-variant: small-caps; }
"""


def page(comparison: Comparison) -> str:
    """The page as one HTML document."""
    names = ", ".join(comparison.hosts[:6])
    more = len(comparison.hosts) - 6
    title = escape(names + (f" and {more} more" if more > 0 else ""))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Isthmus: {title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>What differs between {title}</h1>
<p>Guests booted unlevelled on the CPU of a row, moving to the CPU of a column: the worst that they
meet, with the number of reasons. A guest booted with the level of all moves freely.</p>
<div class="wide">{_map(comparison)}</div>
<h2>Features that not all have</h2>
<div class="wide">{_features(comparison)}</div>
<h2>Pair by pair</h2>
{_pairs(comparison)}
<h2>The rules</h2>
<dl>{_rules(comparison)}</dl>
</body>
</html>
"""


def _map(comparison: Comparison) -> str:
    found = {(way.source, way.destination): way for way in comparison.directions}
    detailed = len(comparison.directions) <= _MAX_DETAILED
    head = "".join(f'<th scope="col">{escape(host)}</th>' for host in comparison.hosts)
    rows = []
    for source in comparison.hosts:
        cells = "".join(
            _cell(found.get((source, host)), comparison, detailed) for host in comparison.hosts
        )
        rows.append(f'<tr><th scope="row">{escape(source)}</th>{cells}</tr>')
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _cell(way: Direction | None, comparison: Comparison, detailed: bool) -> str:
    if way is None:
        return '<td class="cell self">-</td>'
    word = _WORDS[way.worst]
    count = way.count(way.worst) if way.worst else 0
    text = f"{word} {count}" if count else word
    subjects = sorted({f.subject for found in way.groups.values() for f in found})
    title = escape(", ".join(subjects[:40]), quote=True)
    if detailed:
        text = f'<a href="#{_anchor(way, comparison)}">{text}</a>'
    return f'<td class="cell {word}" title="{title}">{text}</td>'


def _anchor(way: Direction, comparison: Comparison) -> str:
    return f"p{comparison.hosts.index(way.source)}-{comparison.hosts.index(way.destination)}"


def _features(comparison: Comparison) -> str:
    head = "".join(f'<th scope="col">{escape(host)}</th>' for host in comparison.hosts)
    rows = []
    for name, having in comparison.features.items():
        cells = "".join(
            '<td class="cell has">yes</td>' if host in having else '<td class="cell"></td>'
            for host in comparison.hosts
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _pairs(comparison: Comparison) -> str:
    if len(comparison.directions) > _MAX_DETAILED:
        return (
            f"<p>More than {_MAX_DETAILED} pairs: compare fewer hosts, or take <code>--json</code>"
            " for their findings.</p>"
        )
    return "\n".join(_pair(way, comparison) for way in comparison.directions)


def _pair(way: Direction, comparison: Comparison) -> str:
    parts = [_group(meaning, way) for meaning in way.groups]
    head = f"{escape(way.source)} to {escape(way.destination)}: {_WORDS[way.worst]}"
    return (
        f'<details id="{_anchor(way, comparison)}"><summary>{head}</summary>'
        f"{''.join(parts)}</details>"
    )


def _group(meaning: Meaning, way: Direction) -> str:
    items = "".join(
        f'<li><span class="severity">{finding.severity.value}</span> {escape(finding.subject)}: '
        f'{escape(finding.notice)} (<a href="#{escape(finding.rule)}">{escape(finding.rule)}</a>)'
        "</li>"
        for finding in way.groups[meaning]
    )
    return f"<h4>{meaning.value}</h4><ul>{items}</ul>"


def _rules(comparison: Comparison) -> str:
    used = {f.rule for way in comparison.directions for found in way.groups.values() for f in found}
    return "".join(_rule_lines(used))


def _rule_lines(used: set[str]) -> Iterable[str]:
    for rule in rules():
        if rule.id in used:
            yield (
                f'<dt id="{escape(rule.id)}"><code>{escape(rule.id)}</code></dt>'
                f"<dd>{escape(rule.notice)}. Remedy: {escape(rule.remedy)}. "
                f"Source: {escape(rule.source)} ({rule.basis}).</dd>"
            )
