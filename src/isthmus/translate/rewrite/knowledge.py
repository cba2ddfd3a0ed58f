"""Which of Linux' patch sites may be rewritten, and for what: ``data/rewrites.json``.

Only features are listed whose sites keep their meaning when they are changed under a kernel that
runs.  Not listed, on purpose: FSGSBASE (an exception that began in one form of the paranoid entry
would end in the other), XSAVES and XSAVEC (the state that lies in memory has their compact form),
SMAP (the CPU goes on checking as long as CR4.SMAP is set, and a CPU that lacks it cannot be loaded
with that bit by KVM).
"""

import functools
from importlib import resources

from isthmus.values import Value, from_json


class Rewritable(Value, frozen=True, rename={"origin": "from"}):
    """One feature by its canonical name and Linux' number; the encodings are for readers."""

    name: str
    feature: int
    origin: str
    to: str
    why: str
    source: str


class ByMaker(Value, frozen=True, rename={"origin": "from"}):
    """One choice that follows the maker of the *host*, whatever the guest is shown."""

    name: str
    feature: int
    makers: tuple[str, ...]
    origin: str
    to: str
    why: str
    source: str


class Implied(Value, frozen=True):
    """A feature of Linux' own making that follows from a CPU's."""

    feature: int
    by: str
    source: str


class HypercallPage(Value, frozen=True):
    """The format of a page that a hypervisor writes into its guests.

    ``entries`` of ``entry_bytes`` each; an entry is one of ``begin`` (hexadecimal digits, in which
    ``NUMBER`` stands for its number in four bytes), the call, and RET, and then bytes that are all
    one of ``padding``; if that is empty the hypervisor writes no more than that.  Entries in
    ``without`` may begin with UD2 instead.
    """

    name: str
    entries: int
    entry_bytes: int
    begin: tuple[str, ...]
    padding: tuple[int, ...]
    without: tuple[int, ...]
    why: str
    source: str

    def beginnings(self, number: int) -> tuple[bytes, ...]:
        """What may stand before the call in the entry of that number."""
        digits = number.to_bytes(4, "little").hex()
        return tuple(bytes.fromhex(one.replace("NUMBER", digits)) for one in self.begin)


class Knowledge(Value, frozen=True):
    """The whole table."""

    schema: int
    note: str
    features: tuple[Rewritable, ...]
    makers: tuple[ByMaker, ...]
    implied: tuple[Implied, ...]
    pages: tuple[HypercallPage, ...]


@functools.cache
def knowledge() -> Knowledge:
    """The table, read once."""
    file = resources.files("isthmus.translate.rewrite").joinpath("data", "rewrites.json")
    return from_json(file.read_bytes(), Knowledge, where="rewrites.json")
