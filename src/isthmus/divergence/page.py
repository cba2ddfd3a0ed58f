"""The page ``docs/divergences.md``: every rule of the catalogue, for people to read.

``python -m isthmus.divergence.page FILE`` writes it anew; a test holds the committed page to the
data.
"""

import sys
from pathlib import Path

from isthmus.divergence.rules import Group, Rule, groups

_HEAD = """# Divergences

What a guest can notice when it wakes up on another CPU: the rules that `isthmus migrate` and
`isthmus check` judge a move by. This page is generated from `src/isthmus/divergence/data/catalogue`
(`python -m isthmus.divergence.page docs/divergences.md`). Each rule has an example in which it
applies and a counterexample in which it is silent; `tests/unit/test_divergence_rules.py` runs both.

A severity is `refuse` (no move unless the rule is accepted by name), `warn`, `note`; *translates*
means that an armed translator lifts the refusal. *Basis* says how it is known: by an experiment of
this project, from source code, from a manual, or from what somebody told.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _row(rule: Rule) -> str:
    severity = rule.severity.value + (", translates" if rule.translates else "")
    told = rule.test or "tests/unit/test_divergence_rules.py"
    cells = (
        f'<a id="{rule.id}"></a>`{rule.id}`', severity, rule.notice, rule.remedy,
        f"{rule.source} ({rule.basis})",
        f"{rule.example.words()}", f"`{told}`",
    )  # fmt: skip
    head, *rest = cells
    return "| " + " | ".join([head, *(_cell(cell) for cell in rest)]) + " |"


def _section(group: Group) -> str:
    head = "| rule | severity | what the guest notices | remedy | source (basis) | example | test |"
    rows = "\n".join(_row(rule) for rule in group.rules)
    return f"## {group.title}\n\n{head}\n|---|---|---|---|---|---|---|\n{rows}\n"


def page() -> str:
    """The whole page, as Markdown."""
    sections = list(groups().values())
    count = sum(len(group.rules) for group in sections)
    counted = f"{count} rules in {len(sections)} groups.\n"
    return "\n".join([_HEAD, counted, *(_section(group) for group in sections)])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
