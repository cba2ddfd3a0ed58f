"""Whether a guest's kernel takes our module: a pure decision from the files that it shows.

Seen on Debian's kernels 6.1 and 6.12: an unsigned module loads and taints the kernel; with lockdown
"Operation not permitted"; with ``module.sig_enforce=1`` "Key was rejected by service".
"""

import re

from isthmus.values import Value

FILES = (
    "sys/kernel/security/lockdown",
    "sys/module/module/parameters/sig_enforce",
    "proc/sys/kernel/tainted",
)
"""What the guest's kernel says of it, below its root: for the parameters of these names."""

# Linux: Documentation/admin-guide/tainted-kernels.rst.
_UNSIGNED = 1 << 13
_SIGN = "build it in the guest by DKMS, which signs it with the machine owner's key"


class Obstacle(Value, frozen=True):
    """Why the module would not load, the file that says so, and what to do."""

    why: str
    source: str
    remedy: str


def obstacles(*, lockdown: str, sig_enforce: str, signed: bool) -> tuple[Obstacle, ...]:
    """What stands in the way; empty if the kernel will take it.

    The texts come from the guest and may be anything: what is not understood is an obstacle.

    :param lockdown: ``/sys/kernel/security/lockdown``; "" if the kernel has no such file, so none.
    :param sig_enforce: ``/sys/module/module/parameters/sig_enforce``; "" if it has no such file:
        it knows no signatures.
    :param signed: the module has a signature of a key that the guest's kernel trusts.
    """
    found = []
    level = re.search(r"\[(\w{1,32})\]", lockdown[:200])
    if lockdown.strip() and level is None:
        found.append(_unknown("/sys/kernel/security/lockdown"))
    elif level and level[1] != "none" and not signed:
        found.append(
            Obstacle(
                why=f"the kernel is locked down ({level[1]}): it loads signed modules only",
                source="/sys/kernel/security/lockdown",
                remedy=_SIGN,
            )
        )
    answer = sig_enforce.strip()[:8]
    if answer not in {"", "Y", "N"}:
        found.append(_unknown("/sys/module/module/parameters/sig_enforce"))
    elif answer == "Y" and not signed:
        found.append(
            Obstacle(
                why="the kernel enforces signatures of modules",
                source="/sys/module/module/parameters/sig_enforce",
                remedy=_SIGN,
            )
        )
    return tuple(found)


def taints(tainted: str) -> bool:
    """Whether loading an unsigned module changes what the kernel says of its own health.

    Monitors and support contracts look at it, so the operator should know beforehand.

    :param tainted: ``/proc/sys/kernel/tainted``; what is no number counts as untainted.
    """
    text = tainted.strip()[:16]
    return not (re.fullmatch(r"[0-9]{1,10}", text) and int(text) & _UNSIGNED)


def _unknown(source: str) -> Obstacle:
    return Obstacle(
        why=f"{source}: not what a Linux kernel says there",
        source=source,
        remedy="read it in the guest, and load the module by hand",
    )
