"""The page ``docs/libvirt-rules.md``: every rule about a libvirt domain, for people to read.

``python -m isthmus.hypervisor.libvirt.page FILE`` writes it anew; a test holds the committed page
to the data.
"""

import re
import sys
from pathlib import Path

from isthmus.hypervisor.libvirt.rules import rules
from isthmus.hypervisor.rules import Rule

_HEAD = """# What stands in the way of moving a libvirt domain

The rules by which `isthmus inventory --to` judges a domain, its devices and storage and both hosts.
This page is generated from `src/isthmus/hypervisor/libvirt/data/rules.json`
(`python -m isthmus.hypervisor.libvirt.page docs/libvirt-rules.md`);
`tests/unit/test_libvirt_rules.py` has a case for each. What a guest would notice of another CPU is
in [divergences.md](divergences.md).

A rule that refuses can be accepted by name (`--accept-risk RULE`, `RULE:SUBJECT` for one device).
Where it is not known whether a rule applies, it speaks all the same, with the severity in brackets
if there is one.
"""
_PLACE = re.compile(r"\{(\w+)\}")


def _cell(text: str) -> str:
    """A text with its places as words, safe in a table."""
    words = {"here": "SOURCE", "there": "DESTINATION", "kind": "its kind"}
    filled = _PLACE.sub(lambda place: words.get(place[1], f"*{place[1]}*"), text)
    return filled.replace("|", "\\|").replace("<", "&lt;")


def _row(rule: Rule) -> str:
    severity = rule.severity.value + (f" ({rule.unknown})" if rule.unknown else "")
    source = f"{rule.source} ({rule.basis})"
    if rule.literal:
        source += f': "{rule.literal}"'
    cells = (
        f"`{rule.id}`", severity, f"{_cell(rule.notice)}: {_cell(rule.cause)}",
        _cell(rule.remedy), _cell(source),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page, as Markdown."""
    head = "| rule | severity | what happens, and why | what to do | source (basis) |"
    rows = "\n".join(map(_row, rules()))
    return f"{_HEAD}\n{len(rules())} rules.\n\n{head}\n|---|---|---|---|---|\n{rows}\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
