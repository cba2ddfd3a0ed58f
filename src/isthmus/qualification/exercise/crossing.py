"""A guest that crosses to a CPU that lacks its instructions and comes home, beside one that stays.

Both are booted unlevelled on the home CPU with the same image.  The exercise in them is the same
program with the same rounds, so what the traveller printed abroad has to be, to the bit, what the
other printed at home.
"""

import asyncio
import contextlib
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
than the tick of 4 ms lasts: a busy guest then does nothing else.  So two reads a tick have to do."""

_START = f'#!/bin/sh\nexec /bin/exercise 0 "${{{PAUSE}:-100}}"\n'.encode()


class Pair(Value, frozen=True):
    """A home, a CPU abroad, and where the missing instructions are done."""

    home: str
    abroad: str
    placement: Placement = Placement.OUTSIDE


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


def image(cache: Path) -> GuestImage:
    """The lab's image with the exercise beside the payload."""
    program = build_exercise(cache).read_bytes()
    return build_image(
        cache=cache,
        more=[
            folder("beside"),
            file("beside/exercise", _START, executable=True),
            file("bin/exercise", program, executable=True),
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
    hosts: Hosts, made: GuestImage, name: str, home: str, pause_ms: int
) -> AsyncIterator[Guest]:
    """A guest with the exercise, ended when the block is left."""
    machine = Machine(
        kernel=made.kernel,
        initrd=made.initrd,
        command_line=f"{command_line(test='none', beat_ms=50)} {CALM} {PAUSE}={pause_ms}",
    )
    guest = await hosts.start(name, home, machine, lives_with_parent=True)
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
    faults: list[str] = []
    async with started(hosts, made, "crosses", pair.home, 100):
        await last_round(hosts, "crosses", stays - 1)
        left = await _move(hosts, pair.abroad)
        # The round in which it moved may have begun at home: it counts for neither.
        await last_round(hosts, "crosses", left + 1 + stays)
        counts = await _translated(hosts, "crosses")
        returned = await _move(hosts, pair.home)
        last = await last_round(hosts, "crosses", returned + 1 + stays)
        text = said(hosts, "crosses")
        streams = [path.read_bytes() for path in hosts.store.read("crosses").streams]
    hosts.store.forget("crosses")
    if word := died(text):
        faults.append(f"the exercise died: {word}")
    run = rounds(text)
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


async def _move(hosts: Hosts, host: str) -> int:
    """Move the traveller; returns the number of the last round that its source finished."""
    source = hosts.store.read("crosses").process.console
    await hosts.move("crosses", host, Options(translate=True, lives_with_parent=True))
    before = rounds(source.read_text(encoding="utf-8", errors="replace"))
    # None was finished there if the guest came and went within one round.
    return max(before, default=-1)


async def _translated(hosts: Hosts, name: str) -> dict[str, int]:
    directory = hosts.store.read(name).translator
    if directory is None:
        return {}
    client = await TranslatorClient.connect(directory)
    try:
        return (await client.status()).translated
    finally:
        await client.close()
