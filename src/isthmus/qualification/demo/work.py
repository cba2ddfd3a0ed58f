"""What was translated for the demo's guest, by the debug stub or by the module in its kernel."""

import asyncio
import time
from collections.abc import Mapping

from isthmus.hypervisor.qemu.guests import Guest
from isthmus.qualification.exercise.crossing import counts
from isthmus.translate.service import TranslatorClient
from isthmus.values import Value

POLL_S = 0.2
_QUIET_COUNTS = 4
"""So many counts of the module, of which the first may have been taken before the move."""


class Work(Value, frozen=True):
    """Instructions that were done, by mnemonic; how long one took in µs, None where not measured.

    ``passed``: traps that were the guest's own affair.
    """

    translated: Mapping[str, int] = {}
    us_per_instruction: float | None = None
    passed: int | None = None


async def work_for(guest: Guest) -> Work | None:
    """What has been done for the guest where it is; None where nobody translates."""
    if guest.module:
        found = counts(_said(guest))
        return Work(translated=found[-1]) if found else Work()
    if guest.translator is None:
        return None
    client = await TranslatorClient.connect(guest.translator)
    try:
        status = await client.status()
    finally:
        await client.close()
    return Work(
        translated=status.translated,
        us_per_instruction=status.us_per_instruction if status.translated else None,
        passed=status.passed,
    )


async def work_at_home(guest: Guest, *, patience_s: float) -> Work | None:
    """What has been done since the guest came home, where nothing should have to be.

    A module goes on with the count that it brought along, so it is asked several times.
    """
    if not guest.module:
        return await work_for(guest)
    deadline = time.monotonic() + patience_s
    while len(found := counts(_said(guest))) < _QUIET_COUNTS and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    if len(found) < _QUIET_COUNTS:
        return None
    before, after = found[1], found[-1]
    more = {name: count - before.get(name, 0) for name, count in after.items()}
    return Work(translated={name: count for name, count in more.items() if count})


def _said(guest: Guest) -> str:
    try:
        return guest.process.console.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
