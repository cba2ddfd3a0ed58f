"""Listens to the payload of one guest, from process to process, and stamps what arrives."""

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from isthmus.cpu.features import FEATURES
from isthmus.guest.console import readable
from isthmus.qualification.payload.report import Follower
from isthmus.qualification.payload.verdict import HopTimes, Verdict, judge

PERIOD_S = 0.002
_EXCERPT = 16  # lines of console


class Listener:
    """Follows the reports of a guest whose processes live in ``folder``/0, /1 and so on.

    The next process's file is found when its folder appears, before the guest moves there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._followers = [Follower(folder / "0" / "payload.log")]
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while True:
            following = self._folder / str(len(self._followers)) / "payload.log"
            if following.exists():
                self._followers.append(Follower(following))
            self._poll()
            await asyncio.sleep(PERIOD_S)

    def _poll(self) -> None:
        for follower in self._followers[-2:]:
            while follower.poll():
                pass

    def hop_times(self, number: int) -> HopTimes:
        """What move ``number`` (from 1) looked like, as far as has been heard."""
        self._poll()
        if number >= len(self._followers):
            return HopTimes()
        before, after = self._followers[number - 1], self._followers[number]
        return judge([before.stream, after.stream]).hops[0]

    async def close(self) -> None:
        """Stop listening; what was heard stays."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._poll()

    def verdict(self, may_lose: frozenset[str] = frozenset()) -> Verdict:
        """The judgement of all that was heard.

        :param may_lose: features that may come and go on the way.
        """
        return judge(
            [follower.stream for follower in self._followers], cpuid_may_lose=cpuid_bits(may_lose)
        )

    def console(self) -> tuple[str, ...]:
        """The last lines of the guest's console, over all its processes."""
        paths = [follower.path.with_name("console.log") for follower in self._followers]
        return readable(
            b"\n".join(path.read_bytes() for path in paths if path.exists()), last=_EXCERPT
        )


def cpuid_bits(features: frozenset[str]) -> Mapping[tuple[int, int, str], int]:
    """The CPUID bits of features by leaf, subleaf and register, as the payload's judge wants them.

    Without SVM its leaf is reserved, and zero (AMD APM vol. 3, CPUID Fn8000_000A).
    """
    bits: dict[tuple[int, int, str], int] = {}
    for name in features:
        feature = FEATURES.get(name)
        if feature is None or feature.leaf is None or feature.bit is None:
            continue
        place = (feature.leaf, feature.subleaf or 0, str(feature.register))
        bits[place] = bits.get(place, 0) | 1 << feature.bit
    if "svm" in features:
        bits |= {(0x8000000A, 0, register): 0xFFFFFFFF for register in ("eax", "ebx", "ecx", "edx")}
    return bits
