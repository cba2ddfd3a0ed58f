"""The page ``docs/coverage.md``: which instructions are executed for a guest, and who agreed.

``python -m isthmus.translate.page FILE`` writes it anew; a test holds the committed page to the
data.
"""

import sys
from pathlib import Path

from isthmus.translate.table import Instruction, Status, instructions, translatable

_HEAD = """# Coverage of the translator

What the emulation core executes, feature by feature, with the independent implementation that it
was compared with. Generated from `src/isthmus/translate/data/instructions.json`
(`python -m isthmus.translate.page docs/coverage.md`).

*Outside*: whether the placement outside the guest covers the whole feature; "without AVX" means for
guests that were not shown AVX, since QEMU's debug stub shows no upper halves of YMM registers and
the VEX encodings clear them. *Silent* instructions run as others where they are missing and never
fault, so nothing can translate them: levelling or a refusal by the rule that is named is the only
cure. *Harmless* ones run as a NOP there, or as something that does no less. *Refused* ones no
placement can do, for the reason given: preflight refuses, a late hit gives the guest its #UD and is
counted by the name of its family (`refused` in the translator's status).

"""


def _outside(feature: str) -> str:
    if feature in translatable():
        return "yes"
    return "without AVX" if feature in translatable(avx=False) else "no"


def _why(row: Instruction) -> str:
    return row.oracle or row.reason or (f"rule `{row.rule}`" if row.rule else "")


def _section(feature: str, rows: list[Instruction]) -> str:
    lines = [
        f"## {feature}\n",
        f"Outside: {_outside(feature)}.\n",
        "| instruction | encodings | status | compared with, or why not | source |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        status = "verified" if row.status is Status.TRANSLATED else row.status.value
        encoding = row.encoding.replace("|", "\\|")
        lines.append(
            f"| {row.mnemonic}{' (YMM)' if row.ymm else ''} | `{encoding}` | {status} | "
            f"{_why(row)} | {row.source} |"
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page, as Markdown."""
    by_feature: dict[str, list[Instruction]] = {}
    for row in instructions():
        by_feature.setdefault(row.feature, []).append(row)
    return _HEAD + "\n".join(_section(name, by_feature[name]) for name in sorted(by_feature))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
