"""A run of the selftest as a table: for the terminal, and as a page of the documentation."""

import time

from isthmus.qualification.kvm.cases.case import Outcome, Part, Verdict
from isthmus.qualification.kvm.cases.run import Report

COMMAND = "isthmus lab kvm selftest --write docs/kvm-selftest.md --write docs/kvm-lab.md"
TITLE = "# Failures of moves between makers, on real KVM"
BEGIN, END = "<!-- the selftest's table -->", "<!-- end of the selftest's table -->"
"""Between these lines a page that people write has the table of the last run."""


def lines(report: Report) -> list[str]:
    """The table for a terminal: a line for each failure, and one for each part of it."""
    said = []
    for outcome in report.outcomes:
        said.append(f"failure {outcome.number}: {outcome.title} ({outcome.seconds:.0f} s)")
        for part in outcome.parts:
            said += [
                f"  {part.tried}",
                f"    expected  {part.expected}",
                f"    seen      {part.seen}",
                f"    verdict   {part.verdict}",
            ]
    parts = [part for outcome in report.outcomes for part in outcome.parts]
    counts = ", ".join(
        f"{sum(part.verdict is verdict for part in parts)} {verdict}" for verdict in Verdict
    )
    return [*said, f"{counts}; {report.seconds:.0f} s"]


def page(report: Report) -> str:
    """The page ``docs/kvm-selftest.md``: versions, the table, and the consoles as evidence."""
    took = f"The run took {report.seconds / 60:.0f} min, hosts included."
    text = [
        TITLE,
        "",
        f"Written by `{COMMAND}` on {_day(report)}; not edited by hand.",
        f"{took} Guests run Linux {report.guest_kernel}.",
        "",
        "| host | KVM | Linux | QEMU in it | emulated as | by | came up in |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| `{host.name}` | {host.kvm} | {host.kernel} | {_cell(host.qemu)}"
            f" | `{host.cpu}` | {host.emulator} | {host.seconds:.0f} s |"
            for host in report.hosts
        ),
        "",
        "What a host is, and what cannot be shown on one: [kvm-lab.md](kvm-lab.md).",
        "",
        *_table(report),
        "",
        "## Consoles",
        "",
    ]
    for outcome in report.outcomes:
        for part in outcome.parts:
            if part.console:
                text += [f"### {outcome.number}: {part.tried}", "", "```text"]
                text += [part.console.replace("```", "'''"), "```", ""]
    return "\n".join(text).rstrip() + "\n"


def takes(text: str) -> bool:
    """Whether a page that has this text may be written anew: ours, or one with marks."""
    return not text or text.startswith(TITLE) or END in text.partition(BEGIN)[2]


def rewritten(text: str, report: Report) -> str:
    """What becomes of the page ``text``: where it has the marks, only what is between them."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        return page(report)
    told = f"Of the run on {_day(report)} ({report.seconds / 60:.0f} min):"
    return "\n".join([head + BEGIN, told, "", *_table(report), END + tail])


def _table(report: Report) -> list[str]:
    return [
        "| failure | tried | expected | seen | verdict |",
        "|---|---|---|---|---|",
        *(
            row(outcome, part, first=number == 0)
            for outcome in report.outcomes
            for number, part in enumerate(outcome.parts)
        ),
    ]


def _day(report: Report) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(report.at))


def row(outcome: Outcome, part: Part, *, first: bool) -> str:
    """A row of the page's table; the failure is named in its first one."""
    name = f"{outcome.number}. {outcome.title}" if first else ""
    cells = (name, part.tried, part.expected, part.seen, part.verdict)
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
