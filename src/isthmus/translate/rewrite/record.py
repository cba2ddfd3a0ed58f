"""What was rewritten in a guest: enough to take it back, and to tell of it.

The record is written *before* the guest's memory is, and lies in the folder of the process that
holds the guest; the guest's own file points to it.
"""

import os
from pathlib import Path

import msgspec

from isthmus.errors import InputError, IsthmusError
from isthmus.values import Value, read_value, to_json

SCHEMA_VERSION = 1
RECORD = "rewritten.json"
HYPERCALLS = "vmmcall"
"""What the hypercalls are named in ``data/rewrites.json``."""


class Written(Value, frozen=True):
    """One site: linear and physical address, the bytes it had at home and has now (hexadecimal).

    In a page that was named by its physical address ``address`` is that, too.
    ``why`` is the feature that the host lacks; ``vdso``: it is executed by programs, at another
    linear address in each.
    """

    address: int
    physical: int
    before: str
    after: str
    why: str
    vdso: bool = False

    @property
    def home(self) -> bytes:
        """What it had at home."""
        return bytes.fromhex(self.before)

    @property
    def now(self) -> bytes:
        """What it has now."""
        return bytes.fromhex(self.after)


class RewriteRecord(Value, frozen=True):
    """All sites of one guest that are not as they were at home.

    ``entry`` is the linear address of its #UD handler, by which its kernel is known again;
    ``restored`` how many sites were put back on arrival here; ``left`` says what was not written,
    and why, in words with their number; ``problem`` is why nothing was done, if so.
    """

    entry: int = 0
    written: tuple[Written, ...] = ()
    restored: int = 0
    left: dict[str, int] = msgspec.field(default_factory=dict)
    problem: str = ""
    schema: int = SCHEMA_VERSION

    def hypercalls_left(self, *, abroad: bool) -> str:
        """Why the guest would call its hypervisor by the wrong instruction; empty if it would not.

        :param abroad: the host is of another maker than the one it was born on.
        """
        left = [words for words in self.left if words.startswith((HYPERCALLS, "hypercall page"))]
        if self.problem or left:
            return self.problem or left[0]
        if abroad and not any(one.why == HYPERCALLS for one in self.written):
            return "no hypercall was found in its kernel"
        return ""


class RewriteOrder(Value, frozen=True):
    """What is to be done to the guest that a paused QEMU has loaded.

    ``kernel`` is the image that the guest booted, None where it is not at hand; ``born`` the
    features that the guest saw at boot, ``features`` those it is shown here; ``maker`` the CPUID
    vendor of this host; ``prior`` the record of the process that the guest comes from;
    ``record`` where the new one goes; ``memory_mib`` the guest's memory in MiB; ``pages`` the
    physical addresses of hypercall pages, where they are known.  ``needed``: the guest must not run
    here unless its hypercalls are those of this maker.
    """

    record: Path
    born: frozenset[str]
    features: frozenset[str]
    maker: str
    memory_mib: int
    kernel: Path | None = None
    prior: Path | None = None
    pages: tuple[int, ...] = ()
    needed: bool = False


def read_record(path: Path | None) -> RewriteRecord:
    """The record at ``path``; an empty one where there is none.

    :raises InputError: it is damaged or newer than this Isthmus.
    """
    if path is None or not path.exists():
        return RewriteRecord()
    record = read_value(path, RewriteRecord)
    if record.schema > SCHEMA_VERSION:
        raise InputError(f"{path}: written by a newer Isthmus", remedy="upgrade this one")
    return record


def write_record(path: Path, record: RewriteRecord) -> None:
    """Write the record durably, whole or not at all.

    :raises IsthmusError: it cannot be written, so the guest must not be touched.
    """
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("wb") as file:
            file.write(to_json(record))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise IsthmusError(f"{path}: cannot be written: {error.strerror}") from error
