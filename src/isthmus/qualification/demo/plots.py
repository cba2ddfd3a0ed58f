"""The plots of the demo's report, as inline SVG; colours come from the report's style sheet."""

import math
from collections.abc import Sequence
from html import escape

from isthmus.qualification.demo.result import ActResult, MoveResult

_WIDTH = 860
_LABEL = 120  # room for names at the left
_ROW = 34


def timeline(acts: Sequence[ActResult], source: str) -> str:
    """Where each act's guest was, and when; a cross where it died, a tick for each move."""
    whole = max((act.ended_s for act in acts), default=0.0) or 1.0
    scale = (_WIDTH - _LABEL - 10) / whole
    step = _nice(whole / 8)
    height = _ROW * len(acts) + 26
    parts = []
    for number in range(int(whole / step) + 1):
        x = _LABEL + number * step * scale
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 20}"/>'
            f'<text class="small" x="{x:.1f}" y="{height - 6}">{number * step:g} s</text>'
        )
    for row, act in enumerate(acts):
        parts.append(_lane(act, source, row * _ROW + 5, scale))
    return _svg(height, "where each guest was, and when", parts)


def _lane(act: ActResult, source: str, top: int, scale: float) -> str:
    parts = [f'<text x="0" y="{top + 16}">{escape(act.title)}</text>']
    for stay in act.stays:
        x = _LABEL + stay.begun_s * scale
        width = max(1.0, (stay.ended_s - stay.begun_s) * scale - 1)
        kind = "source" if stay.host == source else "destination"
        parts.append(
            f'<rect class="{kind}" x="{x:.1f}" y="{top}" width="{width:.1f}" height="22" rx="2">'
            f"<title>{escape(stay.host)}: {stay.begun_s:.1f} s to {stay.ended_s:.1f} s</title>"
            "</rect>"
        )
    if act.outcome.value != "lived":
        x, y = _LABEL + act.ended_s * scale, top + 11
        parts.append(
            f'<path class="death" d="M{x - 6:.1f} {y - 6}l12 12m-12 0l12 -12">'
            f"<title>{escape(act.headline)}</title></path>"
        )
    return "".join(parts)


def downtimes(moves: Sequence[MoveResult]) -> str:
    """Each move's downtime as QEMU measured it, and the gap that the guest saw, as a dot."""
    room, height, base = _WIDTH - _LABEL - 10, 220, 186
    seen = [move.guest_gap_ms for move in moves if move.guest_gap_ms is not None]
    step = _nice(max([move.downtime_ms for move in moves] + seen + [1.0]) / 4)
    highest = step * math.ceil(max([move.downtime_ms for move in moves] + seen + [1.0]) / step)
    scale = (base - 10) / highest
    parts = []
    for number in range(round(highest / step) + 1):
        y = base - number * step * scale
        parts.append(
            f'<line class="grid" x1="{_LABEL}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="small" x="{_LABEL - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{number * step:g} ms</text>"
        )
    pitch = room / len(moves)
    width = max(1.0, min(36.0, pitch * 0.7))
    for index, move in enumerate(moves):
        parts.append(_bar(move, _LABEL + (index + 0.5) * pitch, width, base, scale))
        if len(moves) <= 30:
            middle = _LABEL + (index + 0.5) * pitch
            parts.append(
                f'<text class="small" x="{middle:.1f}" y="{base + 14}" text-anchor="middle">'
                f"{move.number}</text>"
            )
    parts.append(
        f'<text class="small" x="{_LABEL}" y="{height - 4}">bars: downtime of each move by QEMU;'
        " dots: the gap that the guest saw on its own clock</text>"
    )
    return _svg(height, "downtime of each move", parts)


def _bar(move: MoveResult, middle: float, width: float, base: int, scale: float) -> str:
    tall = move.downtime_ms * scale
    title = f"{move.source} to {move.destination}: downtime {move.downtime_ms:.1f} ms"
    bar = (
        f'<rect class="bar" x="{middle - width / 2:.1f}" y="{base - tall:.1f}"'
        f' width="{width:.1f}" height="{tall:.1f}"><title>{escape(title)}</title></rect>'
    )
    if move.guest_gap_ms is None:
        return bar
    y = base - move.guest_gap_ms * scale
    dot = f'<circle class="dot" cx="{middle:.1f}" cy="{y:.1f}" r="{min(4.0, width / 2):.1f}">'
    return f"{bar}{dot}<title>the guest saw {move.guest_gap_ms:.1f} ms</title></circle>"


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _nice(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)
