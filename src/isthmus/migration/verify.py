"""Verification that the guest really lives on the destination.

A guest can die at once (panic), a little later, or hang without a word in its own #UD entry; so
three kinds of evidence are asked for, and none of them needs the guest's help except the last:

- QEMU's run state stays ``running`` (a reset or power-off shows as ``shutdown``);
- the console shows no death;
- it makes progress: its payload's stream grows, or, for a guest without one, no vCPU stands at one
  instruction unhalted.
"""

import asyncio
import re
import time
from pathlib import Path

from isthmus.guest.console import Kind, find_death
from isthmus.hypervisor.qemu.monitor import Monitor
from isthmus.values import Value

SAMPLE_S = 0.05
CONSOLE_TAIL = 1 << 20
_REGISTERS = re.compile(r"RIP=([0-9a-f]+).*?HLT=([01])", re.DOTALL)


class Evidence(Value, frozen=True):
    """What the watch found: whether the guest lives, how long it was watched (s), and why not."""

    alive: bool
    watched_s: float
    reason: str = ""


async def watch(
    monitor: Monitor,
    *,
    seconds: float,
    console: Path | None = None,
    payload: Path | None = None,
    translated: bool = False,
) -> Evidence:
    """Watch the guest for at most ``seconds``.

    With a ``payload`` stream the watch ends early, as soon as three of its records have come from
    the destination.  ``translated`` allows the run state ``debug``, in which a trap holds it.
    """
    begun = time.monotonic()
    fine = {"running", "debug"} if translated else {"running"}
    positions: list[set[tuple[str, str]]] = []
    while True:
        elapsed = time.monotonic() - begun
        state = await monitor.status()
        if state not in fine:
            return Evidence(
                alive=False, watched_s=elapsed, reason=_death(console) or f"the guest is {state}"
            )
        death = _death(console)
        if death:
            return Evidence(alive=False, watched_s=elapsed, reason=death)
        if payload is not None:
            if _lines(payload) >= 3:
                return Evidence(alive=True, watched_s=elapsed)
            if elapsed >= seconds:
                where = _where(await monitor.human("info registers -a"))
                reason = f"its payload reported nothing for {elapsed:.1f} s ({where})"
                return Evidence(alive=False, watched_s=elapsed, reason=reason)
        else:
            text = await monitor.human("info registers -a")
            positions.append(set(_positions(text)))
            if elapsed >= seconds:
                stuck = set.intersection(*positions) if len(positions) >= 10 else set()
                reason = f"a vCPU stands at {min(stuck)[1]} unhalted" if stuck else ""
                return Evidence(alive=not stuck, watched_s=elapsed, reason=reason)
        await asyncio.sleep(SAMPLE_S)


def _positions(registers: str) -> list[tuple[str, str]]:
    """Each unhalted vCPU and its RIP, from QEMU's ``info registers -a``."""
    return [
        (str(number), match[1])
        for number, match in enumerate(_REGISTERS.finditer(registers))
        if match[2] == "0"
    ]


def _where(registers: str) -> str:
    """What the vCPUs of a silent guest do, for the record."""
    stuck = [f"vCPU {number} at {rip}" for number, rip in _positions(registers)]
    return ", ".join(stuck) or "every vCPU is halted"


def _death(console: Path | None) -> str:
    if console is None:
        return ""
    try:
        with console.open("rb") as file:
            file.seek(max(0, console.stat().st_size - CONSOLE_TAIL))
            death = find_death(file.read())
    except OSError:
        return ""
    # That some program was killed may be its own affair, unless it met an instruction it lacks.
    if death is None or (death.kind is Kind.KILLED_BY_SIGNAL and "opcode" not in death.trap):
        return ""
    return death.headline


def _lines(payload: Path) -> int:
    try:
        return payload.read_bytes()[: 1 << 20].count(b"\n")
    except OSError:
        return 0
