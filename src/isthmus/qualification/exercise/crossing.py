"""A guest that crosses to a CPU that lacks its instructions and comes home, beside one that stays.

Both are booted unlevelled on the home CPU with the same image.  The exercise in them is the same
program with the same rounds, so what the traveller printed abroad has to be, to the bit, what the
other printed at home.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.migration.engine import Options
from isthmus.migration.hosts import Hosts, Machine
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.exercise.build import build_exercise
from isthmus.qualification.exercise.encodings import Encoding, encodings
from isthmus.qualification.exercise.rounds import Round, died, differences, rounds
from isthmus.qualification.lab.image import GuestImage, build_image, command_line
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.qualification.payload.verdict import judge
from isthmus.translate.service import TranslatorClient
from isthmus.translate.table import Placement
from isthmus.values import Value

PATIENCE_S = 150.0
POLL_S = 0.1
PAUSE = "exercise_pause"
"""Milliseconds between two rounds: a word of the guest's command line.  The kernel hands words that
it does not know on to init's environment (Linux: init/main.c, unknown_bootoption)."""

CALM = "highres=off nohz=off"
"""A kernel that reads its clock by RDTSCP does so some five times a tick with a high-resolution
timer.  Translated outside under TCG, which throws all its code away at each trap, that takes longer
than the tick of 4 ms lasts: a busy guest then does nothing else.  So two reads a tick have to
do."""

_COUNTED = re.compile(r"counted ((?:[A-Za-z0-9]{1,24} \d{1,20} ?)+)\r?$")
_START = f'#!/bin/sh\nexec /bin/exercise 0 "${{{PAUSE}:-100}}"\n'.encode()


class Pair(Value, frozen=True):
    """A home, a CPU abroad, where the missing instructions are done; rules whose risk is taken."""

    home: str
    abroad: str
    placement: Placement = Placement.OUTSIDE
    accepted: tuple[str, ...] = ()


class Crossing(Value, frozen=True):
    """What became of one crossing.

    ``lost`` are the features whose instructions are missing abroad, ``missing`` how many encodings
    of the exercise that is, ``untouched`` those of their mnemonics that were never translated.
    ``translated`` counts by mnemonic.  ``rounds`` ran at home, abroad and at home again.
    ``faults``: whatever was not as in the guest that stayed at home.
    """

    pair: Pair
    makers: tuple[str, str]
    lost: tuple[str, ...]
    encodings: int
    missing: int
    translated: dict[str, int]
    rounds: tuple[int, int, int]
    untouched: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether everything missing was translated, and all was equal to the bit."""
        return not self.faults and not self.untouched and min(self.rounds) > 0


# What the module counts, on the console, where the exercise reports.
_COUNT = b"""#!/bin/sh
while sleep 1; do
    echo counted $(cat /sys/kernel/debug/isthmus/counters)
done
"""


def image(cache: Path, *, inside: bool = False) -> GuestImage:
    """The lab's image with the exercise beside the payload, and the module if ``inside``."""
    program = build_exercise(cache).read_bytes()
    return build_image(
        cache=cache,
        inside=inside,
        more=[
            folder("beside"),
            file("beside/exercise", _START, executable=True),
            file("bin/exercise", program, executable=True),
            *([file("beside/count", _COUNT, executable=True)] if inside else []),
        ],
    )


def runnable(on: CpuModel) -> tuple[Encoding, ...]:
    """The encodings that the exercise chooses on a CPU."""
    return tuple(
        one for one in encodings()
        if one.lab and all(needed & on.features for needed in one.needs)
    )  # fmt: skip


def missing(home: CpuModel, abroad: CpuModel) -> tuple[Encoding, ...]:
    """Those of the home's that the CPU abroad cannot execute."""
    there = set(runnable(abroad))
    return tuple(one for one in runnable(home) if one not in there)


@contextlib.asynccontextmanager
async def started(
    hosts: Hosts, made: GuestImage, name: str, home: str, pause_ms: int, *, module: bool = False
) -> AsyncIterator[Guest]:
    """A guest with the exercise, ended when the block is left."""
    machine = Machine(
        kernel=made.kernel,
        initrd=made.initrd,
        command_line=f"{command_line(test='none', beat_ms=50)} {CALM} {PAUSE}={pause_ms}",
    )
    guest = await hosts.start(name, home, machine, module=module, lives_with_parent=True)
    try:
        yield guest
    finally:
        with contextlib.suppress(Exception):
            hosts.store.read(name).process.kill()
        guest.process.kill()


def said(hosts: Hosts, name: str) -> str:
    """The consoles of all the guest's processes, joined."""
    consoles = [path.with_name("console.log") for path in hosts.store.read(name).streams]
    return "".join(
        path.read_text(encoding="utf-8", errors="replace") for path in consoles if path.exists()
    )


async def last_round(hosts: Hosts, name: str, at_least: int) -> int:
    """Wait until the guest has finished a round of that number; returns the last one's number.

    :raises TimeoutError: it does not.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = said(hosts, name)
        last = max(rounds(text), default=-1)
        if last >= at_least or died(text):
            return last
        if time.monotonic() > deadline:
            raise TimeoutError(f"no round {at_least} in {PATIENCE_S:g} s: {text[-400:]}")
        await asyncio.sleep(POLL_S)


async def stay(hosts: Hosts, made: GuestImage, home: str, count: int) -> dict[int, Round]:
    """The first ``count`` rounds of a guest that never moves."""
    async with started(hosts, made, "stays", home, 0):
        await last_round(hosts, "stays", count - 1)
        found = rounds(said(hosts, "stays"))
    hosts.store.forget("stays")
    return found


async def cross(hosts: Hosts, made: GuestImage, pair: Pair, stays: int = 3) -> Crossing:
    """One crossing: ``stays`` rounds at home, abroad and at home again, then the comparison."""
    begun = time.monotonic()
    home, abroad = hosts.cpus.offered(pair.home), hosts.cpus.offered(pair.abroad)
    lacking = missing(home, abroad)
    inside = pair.placement is Placement.INSIDE
    faults: list[str] = []
    async with started(hosts, made, "crosses", pair.home, 100, module=inside):
        await last_round(hosts, "crosses", stays - 1)
        left = await _move(hosts, pair.abroad, pair.accepted)
        # The round in which it moved may have begun at home: it counts for neither.
        await last_round(hosts, "crosses", left + 1 + stays)
        counts = await _translated(hosts, "crosses")
        returned = await _move(hosts, pair.home, pair.accepted)
        last = await last_round(hosts, "crosses", returned + 1 + stays)
        if inside:
            counts = await _counts(hosts, "crosses")
        text = said(hosts, "crosses")
        streams = [path.read_bytes() for path in hosts.store.read("crosses").streams]
    hosts.store.forget("crosses")
    if word := died(text):
        faults.append(f"the exercise died: {word}")
    run = rounds(text)
    last = max(run, default=last)  # one more may have come meanwhile
    faults += differences(run, await stay(hosts, made, pair.home, last + 1))
    verdict = judge(streams, cpuid_may_lose=cpuid_bits(home.features ^ abroad.features))
    faults += [str(fault) for fault in verdict.faults]
    return Crossing(
        pair=pair,
        makers=(home.vendor, abroad.vendor),
        lost=tuple(sorted({one.group for one in lacking})),
        encodings=len(runnable(home)),
        missing=len(lacking),
        translated=counts,
        rounds=(left + 1, returned - left - 1, last - returned - 1),
        untouched=tuple(sorted({one.mnemonic for one in lacking} - set(counts))),
        faults=tuple(faults),
        seconds=round(time.monotonic() - begun, 1),
    )


async def _move(hosts: Hosts, host: str, accepted: tuple[str, ...]) -> int:
    """Move the traveller; returns the number of the last round that its source finished."""
    source = hosts.store.read("crosses").process.console
    options = Options(translate=True, lives_with_parent=True)
    await hosts.move("crosses", host, options, accepted=accepted)
    before = rounds(source.read_text(encoding="utf-8", errors="replace"))
    # None was finished there if the guest came and went within one round.
    return max(before, default=-1)


def counted(text: str) -> dict[str, int]:
    """What the module in a guest has translated by the last count on its console, by mnemonic."""
    last = {}
    for line in text.split("\n"):
        match = _COUNTED.search(line)
        if match:
            words = match[1].split()
            last = {
                name: int(count)
                for name, count in zip(words[::2], words[1::2], strict=True)
                if name.isupper()
            }
    return last


async def _counts(hosts: Hosts, name: str) -> dict[str, int]:
    """The module's next counts: it goes on counting where it counted abroad."""
    console = hosts.store.read(name).process.console
    async with asyncio.timeout(PATIENCE_S):
        while True:
            text = console.read_text(encoding="utf-8", errors="replace")
            if (counts := counted(text)) or died(text):
                return counts
            await asyncio.sleep(POLL_S)


async def _translated(hosts: Hosts, name: str) -> dict[str, int]:
    directory = hosts.store.read(name).translator
    if directory is None:
        return {}
    client = await TranslatorClient.connect(directory)
    try:
        return (await client.status()).translated
    finally:
        await client.close()
