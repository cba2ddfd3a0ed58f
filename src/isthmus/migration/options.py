"""How a guest is to be moved, and what is shown meanwhile: the same for every platform."""

from collections.abc import Callable
from pathlib import Path

from isthmus.hypervisor.qemu.stream import Transfer
from isthmus.migration.phases import Phase
from isthmus.values import Value


class Options(Value, frozen=True):
    """How to move.

    ``bandwidth`` in bytes/s and ``downtime_limit_ms``: QEMU's own limits where None;
    ``verify_s`` how long at most to watch before the commit; ``translate`` allows the translator
    outside the guest, which is armed if the findings need it: None as well, but where it can never
    be armed only a wish by name (True) is refused; ``rewrite`` then also rewrites the kernel's
    patch sites; ``warn_share``: above which share of a vCPU its cost is warned of, None: as before;
    ``channel`` is ``unix`` (a socket in a private folder) or ``tcp`` (loopback, for measuring);
    ``through``: a file that the guest goes through, standing still, instead of live;
    ``still``: whether libvirt's guest stands still while QEMU begins to track its writes, None:
    where its CPU is emulated (:mod:`isthmus.hypervisor.qemu.stream`).
    """

    bandwidth: int | None = None
    downtime_limit_ms: int | None = None
    verify_s: float = 10.0
    translate: bool | None = None
    rewrite: bool = True
    warn_share: float | None = None
    channel: str = "unix"
    through: Path | None = None
    still: bool | None = None
    lives_with_parent: bool = False


class Progress(Value, frozen=True):
    """What the operator sees while it moves."""

    phase: Phase
    transfer: Transfer | None = None


Observer = Callable[[Progress], None]
