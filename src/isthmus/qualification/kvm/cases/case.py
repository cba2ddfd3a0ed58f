"""What a case of the selftest is, and what comes of it."""

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.values import Value

if TYPE_CHECKING:
    from isthmus.qualification.kvm.cases.bench import Bench

CONSOLE_LINES = 24
"""How many lines of a console are kept as evidence."""


class Verdict(enum.StrEnum):
    """What is said of a part: it went as expected, or not, or it cannot be shown here."""

    EXPECTED = "as expected"
    OTHERWISE = "NOT AS EXPECTED"
    EXPLAINED = "explained"


class Part(Value, frozen=True):
    """One thing that was tried: what was expected of it, what was seen, and the verdict.

    :param tried: what was done, in a few words ("unlevelled, phenom to haswell").
    :param console: what the guest or the hypervisor said last, as evidence; may be empty.
    """

    tried: str
    expected: str
    seen: str
    verdict: Verdict
    console: str = ""


class Outcome(Value, frozen=True):
    """What came of one case: its parts in the order in which they were tried."""

    number: int
    title: str
    parts: tuple[Part, ...]
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether no part went otherwise."""
        return all(part.verdict is not Verdict.OTHERWISE for part in self.parts)


Run = Callable[["Bench"], Awaitable[Sequence[Part]]]


@dataclass(frozen=True, slots=True)
class Case:
    """One failure: its number in the list of issue and docs, what it is, the lab hosts it needs.

    ``hosts`` are names of ``data/hosts.json``; ``run`` tries it.  A case that raises an error of
    Isthmus has gone otherwise than expected; the error is what was seen.
    """

    number: int
    title: str
    hosts: tuple[str, ...]
    run: Run


def part(tried: str, expected: str, seen: str, *, holds: bool, console: str = "") -> Part:
    """A part that went as expected if ``holds``."""
    return Part(
        tried=tried,
        expected=expected,
        seen=seen,
        verdict=Verdict.EXPECTED if holds else Verdict.OTHERWISE,
        console=console,
    )


def explained(tried: str, expected: str, why: str) -> Part:
    """A part that cannot be shown on these hosts; ``why`` says so with its source."""
    return Part(tried=tried, expected=expected, seen=why, verdict=Verdict.EXPLAINED)


def last_lines(text: str, about: str = "", *, lines: int = CONSOLE_LINES) -> str:
    """The lines of a console from the first that names ``about`` on, or its last ones.

    What cannot be printed comes from a guest, and is left out.
    """
    clean = ["".join(c for c in line if c.isprintable()) for line in text.splitlines()]
    clean = [line for line in clean if line.strip()]
    start = next((n for n, line in enumerate(clean) if about and about in line), None)
    return "\n".join(clean[start : start + lines] if start is not None else clean[-lines:])
