"""What a destination shows a guest that was born with a given CPU.

The guest keeps its identity for life; of its features the destination can honour those that it has
itself.  The rest is what translation has to cover, or what forbids the move.
"""

from isthmus.cpu.features import close
from isthmus.cpu.model import CpuModel


def shown_on(guest: CpuModel, offer: CpuModel) -> CpuModel:
    """``guest`` as a host with ``offer`` can run it: its identity, the features both have."""
    return guest.replace(features=close(guest.features & offer.features))
