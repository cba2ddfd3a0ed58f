"""What is known of the stream: its records, the fields that may be rewritten, the rules.

All three are data with their sources, in ``data/``.
"""

import functools
from importlib import resources
from typing import TypeVar

from isthmus.values import Value, from_json

K = TypeVar("K", bound=Value)

LIBXC_MOST = 128 << 20
"""Xen tools/libs/guest/xg_sr_stream_format.h, REC_LENGTH_MAX; we hold libxl's records to it too."""


class RecordType(Value, frozen=True):
    """One kind of record: its number, and the bounds of its body in bytes.

    ``each`` and ``base``: the body is ``base`` bytes and then entries of ``each`` bytes.  ``body``
    names a check of :mod:`isthmus.translate.xen.bodies`.  ``guests``: the kinds of guest that may
    have it.  ``once``: a second one is an error.  ``backwards``: it travels to the source only.
    ``structure``, ``variable`` and ``per_vcpu`` are of HVM entries: the name in Xen's headers,
    whether more follows the structure, and whether the instance is a vCPU's number.
    """

    type: int
    name: str
    source: str
    body: str = ""
    least: int = 0
    most: int = LIBXC_MOST
    base: int = 0
    each: int = 0
    guests: tuple[str, ...] = ("pv", "hvm")
    once: bool = False
    backwards: bool = False
    structure: str = ""
    variable: bool = False
    per_vcpu: bool = False


class Records(Value, frozen=True):
    """``data/records.json``."""

    schema: int
    note: str
    libxl: tuple[RecordType, ...]
    libxc: tuple[RecordType, ...]
    hvm: tuple[RecordType, ...]


class Field(Value, frozen=True):
    """One little-endian number in a structure."""

    name: str
    offset: int
    bytes: int


class Structure(Value, frozen=True):
    """The fields of one record's body, from ``base`` on."""

    record: str
    structure: str
    base: int
    fields: tuple[Field, ...]


class Fields(Value, frozen=True):
    """``data/fields.json``."""

    schema: int
    note: str
    structures: tuple[Structure, ...]


class Rule(Value, frozen=True):
    """One rewriting: of ``field`` the bits in ``keep`` stay on the way to a maker in ``to``."""

    id: str
    to: tuple[str, ...]
    record: str
    field: str
    keep: str
    why: str
    effect: str
    source: str

    @property
    def mask(self) -> int:
        """``keep`` as a number."""
        return int(self.keep, 16)


class Rules(Value, frozen=True):
    """``data/rules.json``."""

    schema: int
    note: str
    rules: tuple[Rule, ...]


def _read(name: str, kind: type[K]) -> K:
    file = resources.files("isthmus.translate.xen").joinpath("data", name)
    return from_json(file.read_bytes(), kind, where=name)


@functools.cache
def records() -> Records:
    """The records, read once."""
    return _read("records.json", Records)


@functools.cache
def by_number(layer: str) -> dict[int, RecordType]:
    """The records of ``libxl``, ``libxc`` or ``hvm`` by their number."""
    known: tuple[RecordType, ...] = getattr(records(), layer)
    return {record.type: record for record in known}


@functools.cache
def structures() -> dict[str, Structure]:
    """The structures whose fields can be rewritten, by their record's name."""
    return {found.record: found for found in _read("fields.json", Fields).structures}


@functools.cache
def rules() -> tuple[Rule, ...]:
    """Every rule, read once."""
    return _read("rules.json", Rules).rules
