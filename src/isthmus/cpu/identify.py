"""Which CPU it is: code name, generation and year from vendor, family, model and stepping.

The knowledge is ``data/generations.json``, tried in its order: an entry with a ``brand`` or with
``steppings`` stands before the wider one that it refines.  Numbers alone do not tell everything
(one die is sold under several names); the answer is the most exact that numbers and brand allow.
"""

import functools
from importlib import resources

from isthmus.cpu.model import CpuModel
from isthmus.values import Value, from_json


class Generation(Value, frozen=True, forbid_unknown_fields=True):
    """A kind of CPU.

    ``models`` and ``steppings`` are inclusive ranges, ``brand`` is a part of the
    brand string, ``year`` is when it first came out.
    """

    vendor: str
    family: int
    models: tuple[int, int]
    codename: str
    generation: str
    year: int
    steppings: tuple[int, int] = (0, 15)
    brand: str = ""


class _Table(Value, frozen=True):
    schema: int
    source: str
    generations: tuple[Generation, ...]


@functools.cache
def generations() -> tuple[Generation, ...]:
    """Every known kind of CPU, in the order in which they are tried."""
    data = resources.files("isthmus.cpu").joinpath("data", "generations.json").read_bytes()
    return from_json(data, _Table, where="generations.json").generations


def identify(cpu: CpuModel) -> Generation | None:
    """The kind of a CPU; None where it is not known."""
    for kind in generations():
        if (
            (kind.vendor, kind.family) == (cpu.vendor, cpu.family)
            and kind.models[0] <= cpu.model <= kind.models[1]
            and kind.steppings[0] <= cpu.stepping <= kind.steppings[1]
            and kind.brand in cpu.brand
        ):
            return kind
    return None
