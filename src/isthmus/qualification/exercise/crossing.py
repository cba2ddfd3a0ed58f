"""A guest that crosses to a CPU that lacks its instructions and comes home, beside one that stays.

Both are booted unlevelled on the home CPU with the same image.  The exercise in them is the same
program with the same rounds, so what the traveller printed abroad has to be, to the bit, what the
other printed at home.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from isthmus.cpu.model import CpuModel
from isthmus.hypervisor.qemu.guests import Guest
from isthmus.migration.hosts import Hosts, Machine
from isthmus.migration.options import Options
from isthmus.qualification.demo.listener import cpuid_bits
from isthmus.qualification.exercise.build import build_exercise
from isthmus.qualification.exercise.encodings import NEED_NOT_TRAP, Encoding, encodings
from isthmus.qualification.exercise.rounds import died, differences, rounds
from isthmus.qualification.lab.image import GuestImage, build_image, command_line
from isthmus.qualification.lab.initramfs import Entry, file, folder
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
"""Words for the guest's kernel.  With a high-resolution timer a kernel that reads its clock by
RDTSCP does so several times a tick.  Translated outside under TCG, which throws all its code away
at each trap, that seems to take longer than the tick of 4 ms lasts, and a busy guest does nothing
else (three of four moves failed).  Without, none did."""

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
            *(counting() if inside else []),
        ],
    )


def counting() -> tuple[Entry, ...]:
    """What makes a guest print the module's counters each second, beside its payload."""
    return folder("beside"), file("beside/count", _COUNT, executable=True)


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
    hosts: Hosts,
    made: GuestImage,
    name: str,
    home: str,
    pause_ms: int,
    memory_mib: int,
    *,
    module: bool = False,
) -> AsyncIterator[Guest]:
    """A guest with the exercise, ended when the block is left."""
    machine = Machine(
        kernel=made.kernel,
        initrd=made.initrd,
        command_line=f"{command_line(test='none', beat_ms=50)} {CALM} {PAUSE}={pause_ms}",
        memory_mib=memory_mib,
    )
    guest = await hosts.start(name, home, machine, module=module, lives_with_parent=True)
    try:
        yield guest
    finally:
        with contextlib.suppress(Exception):
            hosts.store.read(name).process.kill()
        guest.process.kill()


async def said(hosts: Hosts, name: str, enough: Callable[[str], bool]) -> str:
    """Wait until the console of the guest's process now has said enough; returns all of it.

    :raises TimeoutError: it does not.
    """
    console = hosts.store.read(name).process.console
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
        if enough(text):
            return text
        if time.monotonic() > deadline:
            raise TimeoutError(f"not enough said in {PATIENCE_S:g} s: {text[-400:]}")
        await asyncio.sleep(POLL_S)


class Journey(Value, frozen=True):
    """What a guest said at home, abroad and at home again, and what was translated abroad.

    ``streams`` are its payload's.
    """

    consoles: tuple[str, str, str]
    translated: dict[str, int]
    streams: tuple[bytes, ...]


async def journey(
    hosts: Hosts, made: GuestImage, pair: Pair, enough: Callable[[str], bool], memory_mib: int = 256
) -> Journey:
    """Take a guest abroad and home; it leaves each place when its console there has said enough."""
    options = Options(translate=True, lives_with_parent=True, verify_s=30)
    inside, accepted = pair.placement is Placement.INSIDE, pair.accepted
    async with started(hosts, made, "crosses", pair.home, 100, memory_mib, module=inside):
        await said(hosts, "crosses", enough)
        await hosts.move("crosses", pair.abroad, options, accepted=accepted)
        await said(hosts, "crosses", enough)
        counts = await _translated(hosts, "crosses")
        await hosts.move("crosses", pair.home, options, accepted=accepted)
        await said(hosts, "crosses", enough)
        if inside:  # the module goes on counting where it counted abroad
            counts = counted(await said(hosts, "crosses", lambda text: bool(counted(text))))
        streams = hosts.store.read("crosses").streams
        consoles = [
            path.with_name("console.log").read_text(encoding="utf-8", errors="replace")
            for path in streams
        ]
        payload = tuple(path.read_bytes() for path in streams)
    hosts.store.forget("crosses")
    home, abroad, again = consoles
    return Journey(consoles=(home, abroad, again), translated=counts, streams=payload)


async def stay(
    hosts: Hosts, made: GuestImage, home: str, enough: Callable[[str], bool], memory_mib: int = 256
) -> str:
    """What a guest says that never moves."""
    async with started(hosts, made, "stays", home, 0, memory_mib):
        text = await said(hosts, "stays", enough)
    hosts.store.forget("stays")
    return text


async def cross(hosts: Hosts, made: GuestImage, pair: Pair, stays: int = 3) -> Crossing:
    """One crossing: at least ``stays`` whole rounds in each place, then the comparison."""
    begun = time.monotonic()
    home, abroad = hosts.cpus.offered(pair.home), hosts.cpus.offered(pair.abroad)
    lacking = missing(home, abroad)
    # The first round that ends in a place may have begun in another.
    went = await journey(
        hosts, made, pair, lambda text: len(rounds(text)) > stays or died(text) != ""
    )
    text = "".join(went.consoles)
    faults = [f"the exercise died: {word}"] if (word := died(text)) else []
    run = rounds(text)
    if 0 not in run:
        faults.append("round 0: missing")
    last = max(run, default=0)
    stayed = await stay(hosts, made, pair.home, lambda text: last in rounds(text))
    faults += differences(run, rounds(stayed))
    verdict = judge(went.streams, cpuid_may_lose=cpuid_bits(home.features ^ abroad.features))
    faults += [str(fault) for fault in verdict.faults]
    first, second, third = (len(rounds(console)) for console in went.consoles)
    return Crossing(
        pair=pair,
        makers=(home.vendor, abroad.vendor),
        lost=tuple(sorted({one.group for one in lacking})),
        encodings=len(runnable(home)),
        missing=len(lacking),
        translated=went.translated,
        rounds=(first, second - 1, third - 1),
        untouched=tuple(
            sorted({one.mnemonic for one in lacking} - set(went.translated) - NEED_NOT_TRAP)
        ),
        faults=tuple(faults),
        seconds=round(time.monotonic() - begun, 1),
    )


def counted(text: str) -> dict[str, int]:
    """What the module in a guest has translated by the last count on its console, by mnemonic."""
    found = counts(text)
    return found[-1] if found else {}


def counts(text: str) -> list[dict[str, int]]:
    """Each count of the module in a guest on its console: what it has translated, by mnemonic."""
    found = []
    for line in text.split("\n"):
        match = _COUNTED.search(line)
        if match:
            words = match[1].split()
            pairs = zip(words[::2], words[1::2], strict=True)
            found.append({name: int(count) for name, count in pairs if name.isupper()})
    return found


async def _translated(hosts: Hosts, name: str) -> dict[str, int]:
    directory = hosts.store.read(name).translator
    if directory is None:
        return {}
    client = await TranslatorClient.connect(directory)
    try:
        return (await client.status()).translated
    finally:
        await client.close()
