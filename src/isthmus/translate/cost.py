"""When translation costs too much: one line with the rate, and what to do about it.

A guest that spends a good part of its time in traps is alive but slow, and nobody may have told its
owner why.  The cure is to boot it anew with a CPU that both hosts have.
"""

from collections.abc import Mapping

from isthmus.translate.outside.status import TranslatorStatus

AGAIN_S = 600.0
"""A warning that holds on is repeated in the log only so often."""


def warning(status: TranslatorStatus, share: float, level: str) -> str:
    """What to tell the operator, empty if the cost is within ``share`` of a vCPU (0 to 1).

    :param level: the command that computes the CPU to boot the guest with.
    """
    if status.busy_share <= share:
        return ""
    most = _most(status.translated)
    return (
        f"translation takes {status.busy_share:.1%} of a vCPU (more than {share:.1%}) at"
        f" {status.rate_hz:.0f} instructions/s{most}; reboot the guest levelled: {level}"
    )


def while_silent(status: TranslatorStatus) -> str:
    """What the translator of a guest that is silent did with it; empty if it had nothing to do.

    A guest whose every clock read traps may need longer for them than its timer's tick lasts: then
    it lives, and never comes to its own work.
    """
    if not status.traps:
        return ""
    return (
        f"its translator held it for {status.busy_share:.0%} of the time,"
        f" at {status.rate_hz:.0f} instructions/s{_most(status.translated)}"
    )


def _most(translated: Mapping[str, int]) -> str:
    if not translated:
        return ""
    return f", most of them {max(translated, key=lambda name: (translated[name], name))}"


class Watch:
    """Turns what a translator counts into lines for its log: when it costs too much, and no more.

    :param share: the share of a vCPU that is allowed, 0 to 1.
    """

    def __init__(self, share: float, level: str) -> None:
        self._share = share
        self._level = level
        self._warned: float | None = None
        self._problem = ""

    def judge(self, status: TranslatorStatus, now: float) -> list[str]:
        """The lines to write now.

        :param now: seconds of a clock that only goes forward.
        """
        lines = []
        if status.problem != self._problem:
            lines.append(f"problem: {status.problem}" if status.problem else "the problem is over")
            self._problem = status.problem
        line = warning(status, self._share, self._level)
        if line and (self._warned is None or now - self._warned >= AGAIN_S):
            lines.append(f"warning: {line}")
            self._warned = now
        elif not line and self._warned is not None:
            lines.append(f"translation takes {status.busy_share:.1%} of a vCPU again")
            self._warned = None
        return lines
