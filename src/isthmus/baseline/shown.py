"""What a host shows a guest that was born elsewhere, with more than this host has.

The guest keeps its identity and its maximum leaves: a change of those is noticed and never undone
(see :mod:`isthmus.baseline.identity`).  Its features shrink to what the host offers, and what the
guest still uses of the rest faults: that is what the translator is for.
"""

from isthmus.cpu.features import close
from isthmus.cpu.model import CpuModel


def shown_on(guest: CpuModel, host_offer: CpuModel) -> CpuModel:
    """The CPU that a host with ``host_offer`` shows a guest that was born with ``guest``."""
    return guest.replace(
        source=f"{guest.name} as {host_offer.name} shows it",
        features=close(guest.features & host_offer.features),
    )
