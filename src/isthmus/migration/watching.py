"""Whether a guest still lives, minutes after a move: signs in, a verdict out.  Pure.

What preflight cannot exclude may kill late: a path of the guest's kernel that is first taken after
a quarter of an hour (the rule ``late-death`` of the catalogue tells of real cases).  So a guest
that crossed makers is looked at for a while after the commit.  Whoever looks hands over a
:class:`Sample` every second or two and the :class:`Event` values that came in between;
:func:`step` says what they mean, and what it must remember of them.

What counts as death, and why nothing less does:

- the hypervisor says so: a panic device rang, its vCPUs cannot go on, its process is gone;
- the console shows one (:mod:`isthmus.guest.console`);
- a vCPU stands at one instruction of the kernel with interrupts off, or every vCPU is halted with
  interrupts off: nothing can wake it.  A program that loops, or a kernel that polls while it is
  idle, has them on, so those are never mistaken for death.

A guest that shuts down or restarts tells by its console whether it meant to; a restart without a
word is what a triple fault looks like.  A silent agent alone is a warning: agents are stopped for
many reasons.
"""

import enum
from collections.abc import Sequence

import msgspec

from isthmus.hypervisor.qemu.vcpus import Registers
from isthmus.values import Value

STANDS_S = 30.0
"""How long a vCPU may stand still with interrupts off; Linux itself complains after 20 s
(``softlockup``, kernel/watchdog.c)."""
STANDS_SAMPLES = 10
"""In how many samples at least it must have been seen there."""
AGENT_S = 60.0
"""How long an agent that has answered may be silent."""
FINE = frozenset({"running", "debug"})
"""Run states in which the guest goes on; ``debug``: in a trap of the translator."""


_TRIPLE_FAULT = (
    "it restarted without a word of its kernel: a triple fault, or a panic that it restarts after"
)
_ENDED_SILENTLY = "it ended without a word of its kernel: a triple fault looks like this"


class Sign(enum.StrEnum):
    """What an event of a hypervisor tells; adapters translate their own words into these."""

    PANICKED = "panicked"
    RESTARTED = "restarted"
    SHUT_DOWN = "shut-down"
    STOPPED_BY_HOST = "stopped-by-host"
    CRASHED = "crashed"
    PAUSED = "paused"
    RESUMED = "resumed"
    MOVED = "moved"
    DISK_ERROR = "disk-error"
    WATCHDOG = "watchdog"


class Event(Value, frozen=True):
    """Something that happened at ``at`` (seconds of any steady clock), in its own words."""

    at: float
    sign: Sign
    words: str = ""


class Sample(Value, frozen=True):
    """One look at a guest.  What could not be learnt is empty or None, and is not held against it.

    ``state`` is QEMU's run state.  ``death`` is what the console tells of one, ``casualty`` of a
    program that died of an instruction; ``farewell`` how the kernel said that it goes:
    ``shut-down`` or ``restarted``.  ``agent``: whether the guest's agent answered.  ``translated``
    counts what was translated, ``untranslated`` by name what was met and could not be;
    ``translator_gone`` says that one was armed and does not answer.  ``process_gone`` holds a dead
    process's last words.
    """

    at: float
    state: str = ""
    vcpus: tuple[Registers, ...] = ()
    death: str = ""
    casualty: str = ""
    farewell: str = ""
    agent: bool | None = None
    translated: int | None = None
    untranslated: dict[str, int] = msgspec.field(default_factory=dict)
    translator_gone: bool = False
    translator_warning: str = ""
    process_gone: str = ""


class Outlook(enum.StrEnum):
    """How it stands with the guest; all but ``lives`` and ``held`` end the watch."""

    LIVES = "lives"
    HELD = "held"
    DIED = "died"
    RESTARTED = "restarted"
    LEFT = "left"
    MOVED = "moved"


class Verdict(Value, frozen=True):
    """What a look means: ``reason`` in words, ``warnings`` that do not end the watch."""

    outlook: Outlook
    reason: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Whether there is nothing more to watch."""
        return self.outlook not in {Outlook.LIVES, Outlook.HELD}


class Standing(Value, frozen=True):
    """Since when a vCPU was seen at one place, and how often."""

    since: float
    seen: int


class Memory(Value, frozen=True):
    """What must be remembered from look to look; a new watch begins with an empty one.

    ``standing`` maps vCPU and place to how long it stands there.  ``met`` is what had been met
    untranslated at the first look.
    """

    standing: dict[str, Standing] = msgspec.field(default_factory=dict)
    agent_at: float | None = None
    met: dict[str, int] | None = None


def step(memory: Memory, sample: Sample, events: Sequence[Event] = ()) -> tuple[Memory, Verdict]:
    """What this look and what happened before it mean; and what to remember for the next."""
    standing = _standing(memory, sample)
    remembered = Memory(
        standing=standing,
        agent_at=sample.at if sample.agent else memory.agent_at,
        met=sample.untranslated if memory.met is None else memory.met,
    )
    outlook, reason = _outlook(sample, events, standing)
    warnings = tuple(_warnings(remembered, sample, events))
    return remembered, Verdict(outlook=outlook, reason=reason, warnings=warnings)


def _outlook(
    sample: Sample, events: Sequence[Event], standing: dict[str, Standing]
) -> tuple[Outlook, str]:
    signs = {event.sign: event.words for event in events}
    if Sign.MOVED in signs or sample.state in {"postmigrate", "finish-migrate"}:
        return Outlook.MOVED, "it was moved on"
    if sample.death:
        return Outlook.DIED, sample.death
    if Sign.PANICKED in signs or sample.state == "guest-panicked":
        words = signs.get(Sign.PANICKED)
        return Outlook.DIED, f"its panic device rang{f': {words}' if words else ''}"
    if Sign.WATCHDOG in signs or sample.state == "watchdog":
        return Outlook.DIED, "its watchdog ran out: nothing in it served the watchdog device"
    if Sign.CRASHED in signs or sample.state == "internal-error":
        words = signs.get(Sign.CRASHED) or "the hypervisor could not go on with a vCPU"
        return Outlook.DIED, words
    gone = _gone(sample, signs)
    if gone is not None:
        return gone
    if sample.process_gone:
        return Outlook.DIED, f"its process has ended: {sample.process_gone}"
    if stuck := _stuck(sample, standing):
        return Outlook.DIED, stuck
    if sample.state and sample.state not in FINE:
        why = "a disk of it failed" if sample.state == "io-error" else f"it is {sample.state}"
        return Outlook.HELD, why
    return Outlook.LIVES, ""


def _gone(sample: Sample, signs: dict[Sign, str]) -> tuple[Outlook, str] | None:
    """A guest that has shut down or started anew: on purpose, or as a triple fault looks."""
    if Sign.RESTARTED in signs or (sample.state == "shutdown" and sample.farewell == "restarted"):
        if sample.farewell == "restarted":
            return Outlook.LEFT, "it restarted itself in order, as its console says"
        return Outlook.RESTARTED, _TRIPLE_FAULT
    if Sign.STOPPED_BY_HOST in signs:
        return Outlook.LEFT, "it was stopped from outside"
    if Sign.SHUT_DOWN in signs or sample.farewell == "shut-down":
        return Outlook.LEFT, "it shut itself down"
    if sample.state == "shutdown":
        return Outlook.RESTARTED, _ENDED_SILENTLY
    return None


def _stuck(sample: Sample, standing: dict[str, Standing]) -> str:
    for key, seen in standing.items():
        if sample.at - seen.since >= STANDS_S and seen.seen >= STANDS_SAMPLES:
            seconds = f"{sample.at - seen.since:.0f} s"
            if key == _ALL_HALTED:
                return f"every vCPU is halted with interrupts off, for {seconds}"
            number, _, place = key.partition(" ")
            return f"vCPU {number} stands at {place} with interrupts off, for {seconds}"
    return ""


_ALL_HALTED = "halted"


def _standing(memory: Memory, sample: Sample) -> dict[str, Standing]:
    if sample.state == "debug" or (sample.state and sample.state not in FINE):
        return {}  # held by somebody: nothing can move
    if not sample.vcpus:
        return memory.standing  # nobody looked
    places = [
        f"{vcpu.number} {vcpu.at}"
        for vcpu in sample.vcpus
        if vcpu.ring == 0 and not vcpu.interrupts and not vcpu.halted
    ]
    if all(vcpu.halted and not vcpu.interrupts for vcpu in sample.vcpus):
        places.append(_ALL_HALTED)
    old = memory.standing
    return {
        place: old[place].replace(seen=old[place].seen + 1)
        if place in old
        else Standing(since=sample.at, seen=1)
        for place in places
    }


def _warnings(memory: Memory, sample: Sample, events: Sequence[Event]) -> list[str]:
    warnings = []
    silent = sample.at - memory.agent_at if memory.agent_at is not None else 0.0
    if sample.agent is False and silent >= AGENT_S:
        warnings.append(f"its agent has been silent for {silent:.0f} s")
    if sample.casualty:
        warnings.append(f"a program in it died: {sample.casualty}")
    if sample.translator_gone:
        warnings.append("its translator has ended: `isthmus status` starts it again")
    if sample.translator_warning:
        warnings.append(sample.translator_warning)
    for name, count in sorted(sample.untranslated.items()):
        more = count - (memory.met or {}).get(name, 0)
        if more > 0:
            warnings.append(f"it met {name} {more} times, which nobody executes for it")
    warnings += [
        f"a disk failed: {event.words}" for event in events if event.sign is Sign.DISK_ERROR
    ]
    return warnings
