"""The demo's summary as an SVG picture, drawn from the result of a real run.

Use: ``script/picture RESULT.json PICTURE.svg``.  The picture names no font or host of the web.
"""

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from isthmus.qualification.demo.result import DemoResult
from isthmus.qualification.demo.terminal import summary
from isthmus.values import read_value

WIDTH = 88  # characters
_THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255),
     (188, 140, 255), (57, 197, 207), (177, 186, 196)],
)  # fmt: skip
# Rich's own frame fetches a font from the web.
_FRAME = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px }}
{styles}
</style>
<defs>
{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<g transform="translate(9, 20)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(result: DemoResult, *, width: int = WIDTH) -> str:
    """The summary of a demo as an SVG document."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(summary(result))
    return console.export_svg(
        title="isthmus demo", theme=_THEME, code_format=_FRAME, unique_id="isthmus"
    )


def main() -> int:
    """The entry point of ``script/picture``."""
    source, target = map(Path, sys.argv[1:])
    target.write_text(picture(read_value(source, DemoResult)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
