"""How a Linux guest's death reads on its console: kernel panic, oops, or a program killed.

The console is hostile text: a guest may print anything, in any amount, with terminal escapes.  So
only the last :data:`MAX_BYTES` are looked at, lines are cut, control characters are dropped, and
nothing found here is ever executed or trusted beyond telling an operator what was printed.

Forms, as the kernel prints them on x86 (4.19 to 6.12):

- oops: ``arch/x86/kernel/dumpstack.c``: ``__die_header`` (``invalid opcode: 0000 [#1] SMP``; since
  6.10 with ``Oops:`` before it), ``show_ip`` (``RIP: 0010:read_tsc+0x0/0x20``) and
  ``show_opcodes`` (``Code: 00 <0f> 01 f9``, the faulting byte in angle brackets);
- panic: ``kernel/panic.c``: ``Kernel panic - not syncing: …``;
- a killed program: ``arch/x86/kernel/traps.c``: ``show_signal`` (``traps: sh[12] trap
  invalid opcode ip:… sp:… error:0 in sh[…]``) and ``arch/x86/mm/fault.c``:
  ``show_signal_msg`` (``segfault at``).

A ``WARNING:`` has the same registers and code lines but kills nobody; it is passed over.
"""

import enum
import re
from collections.abc import Callable, Sequence

import msgspec

from isthmus.values import Value

MAX_BYTES = 4 << 20
"""How much of a console is looked at, from its end."""
MAX_LINE = 1024
"""Characters of a line that are looked at."""
MAX_LINES = 60
"""Lines of evidence kept in :attr:`Death.lines`."""
_AFTER_PANIC = 12  # lines: the rest says where the kernel was loaded
_DUMP = 40  # lines in which the registers and the code of a killed program are printed
MAX_CODE = 64
"""Opcode bytes kept; the kernel prints 64 in all (``OPCODE_BUFSIZE``)."""


class Kind(enum.StrEnum):
    """How something died."""

    PANIC = "panic"
    OOPS = "oops"
    KILLED_BY_SIGNAL = "killed-by-signal"


class Death(Value, frozen=True):
    """One death as the console tells it; what the console does not tell is empty or None.

    ``headline`` is the kernel's own sentence; ``trap`` the exception's name ("invalid opcode").
    ``ip`` is the faulting address where printed, ``symbol`` its name in the guest kernel
    ("read_tsc+0x0/0x20").  ``code[offset:]`` begins with the faulting instruction.  ``bits`` is the
    width of the code.  ``user`` tells user mode from kernel mode.  ``program`` is the task's name.
    ``kernel`` is the guest kernel's release.  ``lines`` is the evidence, made safe for a terminal.
    """

    kind: Kind
    headline: str
    trap: str = ""
    ip: int | None = None
    symbol: str = ""
    code: bytes = b""
    offset: int = 0
    bits: int = 64
    user: bool = False
    program: str = ""
    kernel: str = ""
    lines: tuple[str, ...] = ()


_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]{0,32}[ -/]{0,8}[@-~]|[@-Z\\-_])")
_FAREWELL = re.compile(rb"reboot: (Restarting system|Power down|System halted)")
_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")
_STAMP = re.compile(r"\[ {0,8}\d{1,10}\.\d{6}\](?:\[ {0,8}[TC]\d{1,9}\])? ?")
_PANIC = re.compile(r"(?<!end )Kernel panic - not syncing: (.{0,200})")
_OOPS = re.compile(r"([A-Za-z][^\[\]]{1,160}): (?:0x)?[0-9a-f]{4,16} \[#\d{1,5}\]")
_MARKS = _PANIC_MARK, _OOPS_MARK, _KILLED_MARK = b"Kernel panic", b" [#", b" error"
_BUG = re.compile(r"(BUG: (?:unable to handle|kernel NULL).{0,120}|kernel BUG at .{1,160}!)")
_KILLED = re.compile(
    r"(?:traps: )?([^\s:\[][^\[\]]{0,31})\[\d{1,10}\]:? (?:trap |)"
    r"([A-Za-z][\w /:-]{0,60}?)(?: at [0-9a-f]{1,16})?"
    r" (?:rip|ip)[: ]([0-9a-f]{1,16}) (?:rsp|sp)[: ][0-9a-f]{1,16} error[: ][0-9a-f]{1,8}"
)
_RIP = re.compile(r"\b([RE]IP): (?:([0-9a-f]{4}):)?(\S{1,256})")
_CODE = re.compile(r"\bCode: ((?:[0-9a-f]{2} |<[0-9a-f]{2}>(?: |$)|[0-9a-f]{2}$){1,80})")
_TASK = re.compile(
    r"PID: \d{1,10} Comm: (.{1,64}?) (?:Not tainted|Tainted: .{0,80}?) +(\d\S{0,64})"
)


def find_death(console: bytes) -> Death | None:
    """The first death that ``console`` tells of, None if it tells of none.

    A panic goes before an oops, an oops before a killed program: the greater is what ended the
    guest, and it takes over where the lesser one says what led to it.  Give only what was printed
    since the moment of interest: an old death is as good as a new one here.
    """
    console = console[-MAX_BYTES:]
    if not any(mark in console for mark in _MARKS):
        return None  # what a watch finds nearly always, and quickly
    raw = [line for line in console.split(b"\n") if line]
    panic = _first(raw, _PANIC_MARK, _PANIC.search)
    oops = _first(raw, _OOPS_MARK, _OOPS.match)
    killed = _first(raw, _KILLED_MARK, _KILLED.match)
    if panic is not None:
        return _panic(raw, panic, oops, killed)
    if oops is not None:
        return _oops(raw, oops)
    return None if killed is None else _killed(raw, killed)


def readable(console: bytes, *, last: int) -> tuple[str, ...]:
    """The last lines of ``console``, at most ``last``, made safe for a terminal."""
    raw = [line for line in console[-MAX_BYTES:].split(b"\n") if line.strip()]
    return tuple(text for line in raw[-last:] if (text := _clean(line)).strip())


def farewell(console: bytes) -> str:
    """How the kernel said that it goes: ``shut-down``, ``restarted``, or empty: it did not.

    Source: Linux ``kernel/reboot.c``, which says so for whatever is asked of it in order; a panic
    that restarts (``panic=10``) does not come by there.
    """
    found = _FAREWELL.findall(console[-MAX_BYTES:])
    if not found:
        return ""
    return "restarted" if found[-1] == b"Restarting system" else "shut-down"


def _clean(line: bytes) -> str:
    """A line cut to :data:`MAX_LINE`, without escapes, control characters and time stamp.

    What a program wrote before the kernel broke into its line goes with the stamp.
    """
    text = _UNPRINTABLE.sub(b"", _ESCAPES.sub(b"", line[:MAX_LINE])).decode("ascii")
    stamp = _STAMP.search(text)
    return text[stamp.end() :] if stamp else text


def _first(
    raw: Sequence[bytes], mark: bytes, found: Callable[[str], re.Match[str] | None]
) -> int | None:
    """The number of the first line with ``mark`` in which ``found`` finds its pattern.

    Only a pattern that begins with a fixed word is searched for in the whole line; the others match
    at its begin, or a guest could buy seconds of our time with a megabyte of letters.
    """
    return next((at for at, line in enumerate(raw) if mark in line and found(_clean(line))), None)


def _panic(raw: Sequence[bytes], at: int, oops: int | None, killed: int | None) -> Death:
    """A panic, with its cause from what stands before it, else from its own registers."""
    begin = at
    if oops is not None and oops < at:
        cause, begin = _oops(raw, oops), oops
    elif killed is not None and killed < at and b"kill init" in raw[at]:
        cause, begin = _killed(raw, killed), killed
    else:
        cause = _registers(raw, at)
    match = _PANIC.search(_clean(raw[at]))
    assert match is not None
    return msgspec.structs.replace(
        cause,
        kind=Kind.PANIC,
        headline=f"Kernel panic - not syncing: {match[1].strip()}",
        lines=_evidence(raw, begin, at, after=_AFTER_PANIC),
    )


def _oops(raw: Sequence[bytes], at: int) -> Death:
    before = [_clean(line) for line in raw[max(0, at - 5) : at]]
    line = _clean(raw[at])
    match = _OOPS.match(line)
    assert match is not None
    trap = match[1]
    while trap.startswith("Oops: "):
        trap = trap.removeprefix("Oops: ")
    bug = next((found[1] for text in before if (found := _BUG.match(text))), "")
    begin = at - len(before) if bug else at
    return msgspec.structs.replace(
        _registers(raw, at),
        kind=Kind.OOPS,
        headline=bug or line[:200].strip(),
        trap=trap,
        lines=_evidence(raw, begin, at),
    )


def _killed(raw: Sequence[bytes], at: int) -> Death:
    """A program killed by a trap; its code may follow, behind the dump of its registers."""
    line = _clean(raw[at])
    match = _KILLED.match(line)
    assert match is not None
    dump = [_clean(after) for after in raw[at + 1 : at + 1 + _DUMP]]
    code, offset = _code(dump)
    shown = next((number for number, text in enumerate(dump, 1) if _CODE.search(text)), 0)
    return Death(
        kind=Kind.KILLED_BY_SIGNAL,
        headline=line[:200].strip(),
        trap=match[2].removeprefix("trap "),
        ip=int(match[3], 16),
        code=code,
        offset=offset,
        user=True,
        program=match[1].strip(),
        lines=_evidence(raw, at, at, after=shown if code else 0),
    )


def _registers(raw: Sequence[bytes], at: int) -> Death:
    """Instruction pointer, code and task from the dump that follows line ``at``."""
    dump: list[str] = []
    for line in map(_clean, raw[at : at + MAX_LINES]):
        if "---[ end" in line or (dump and "WARNING: CPU:" in line):
            break
        dump.append(line)
    code, offset = _code(dump)
    rip = next((found for line in dump if (found := _RIP.search(line))), None)
    task = next((found for line in dump if (found := _TASK.search(line))), None)
    where = rip[3] if rip else ""
    numeric = re.fullmatch(r"0x[0-9a-f]{1,16}", where)
    # The two lowest bits of a code selector are the privilege level; 3 is user mode.
    user = bool(rip and rip[2] and int(rip[2], 16) & 3 == 3)
    return Death(
        kind=Kind.OOPS,
        headline="",
        ip=int(where, 16) if numeric else None,
        symbol="" if numeric else where,
        code=code,
        offset=offset,
        bits=32 if rip and rip[1] == "EIP" else 64,
        user=user,
        program=task[1] if task else "",
        kernel=task[2] if task else "",
    )


def _code(dump: Sequence[str]) -> tuple[bytes, int]:
    """The bytes of the first ``Code:`` line and the place of the faulting one among them."""
    for line in dump:
        if (match := _CODE.search(line)) and "<" in match[1]:
            words = match[1].split()[:MAX_CODE]
            marked = [number for number, word in enumerate(words) if word.startswith("<")]
            if len(marked) == 1:
                return bytes(int(word.strip("<>"), 16) for word in words), marked[0]
    return b"", 0


def _evidence(
    raw: Sequence[bytes], begin: int, at: int, *, after: int = MAX_LINES // 2
) -> tuple[str, ...]:
    """The lines from ``begin`` on, through ``at`` and ``after`` more, at most :data:`MAX_LINES`."""
    chosen = raw[begin : at + 1 + after]
    if len(chosen) > MAX_LINES:
        chosen = [*chosen[: MAX_LINES // 2], *chosen[-(MAX_LINES // 2) :]]
    return tuple(text for line in chosen if (text := _clean(line)).strip())
