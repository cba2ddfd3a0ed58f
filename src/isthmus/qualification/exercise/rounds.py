"""What the exercise said, and whether two runs of it agree to the bit.

A line each round: ``exercise ROUND ran=COUNT FEATURE=SUM … end``.  The console carries the kernel's
words, too, which break into a line (it writes them past the terminal's buffer), and a move may cut
a line in two between two processes' files: join them before.
"""

import re
from collections.abc import Mapping

from isthmus.values import Value

_ROUND = re.compile(
    r"exercise (\d{1,9}) ran=(\d{1,6})((?: [a-z0-9.-]{1,32}=[0-9a-f]{16})*) end\r?$"
)
_KERNEL = re.compile(r"\[ {0,4}\d{1,8}\.\d{6}\] [^\n]*\n")
"""A message of the kernel, with its time (Linux kernel/printk/printk.c, print_time)."""
_DIED = re.compile(r"exercise died (signal=\d{1,3} name=\w{1,32}) ")


class Round(Value, frozen=True):
    """One round: how many instructions ran, and the sum of their results by feature."""

    ran: int
    sums: Mapping[str, str]


def rounds(text: str) -> dict[int, Round]:
    """The rounds that a console tells of, by number."""
    found = {}
    for line in _KERNEL.sub("", text).split("\n"):
        match = _ROUND.search(line)
        if match:
            sums = dict(pair.split("=") for pair in match[3].split())
            found[int(match[1])] = Round(ran=int(match[2]), sums=sums)
    return found


def died(text: str) -> str:
    """The signal that ended the exercise and the instruction it stood at; empty if none did."""
    match = _DIED.search(text)
    return match[1] if match else ""


def differences(run: Mapping[int, Round], home: Mapping[int, Round]) -> tuple[str, ...]:
    """Where a run is not equal to one that stayed at home; empty if it is, to the bit.

    A round that ``run`` left out between its first and its last is a difference, too.
    """
    found = []
    for number in range(min(run, default=0), max(run, default=-1) + 1):
        if number not in run:
            found.append(f"round {number}: missing")
        elif number not in home:
            found.append(f"round {number}: not in the other run")
        elif run[number] != home[number]:
            mine, theirs = run[number].sums, home[number].sums
            names = sorted(
                name for name in mine.keys() | theirs if mine.get(name) != theirs.get(name)
            )
            found.append(f"round {number}: {', '.join(names) or 'count'}")
    return tuple(found)
