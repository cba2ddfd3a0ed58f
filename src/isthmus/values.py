"""The base of the values that everything speaks: frozen, typed, JSON with a schema version.

A user can store such a value, diff it and send it to a vendor; reading one back checks every
field.  See ``docs/decisions/0002-msgspec.md``.
"""

from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from isthmus.errors import InputError

V = TypeVar("V", bound="Value")

MAX_DOCUMENT_BYTES = 64 << 20
"""Largest JSON document that is read; a longer file is hostile or a mistake."""


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A frozen value with keyword-only fields."""

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)


def to_json(value: Any, *, indent: int | None = None) -> bytes:
    """Encode a value as JSON; keys and sets are sorted, so that equal values are equal bytes.

    :raises InputError: a text in it, such as a file's name, is not UTF-8, and JSON knows no other.
    """
    # Numbers as keys (MSRs) become texts first: the encoder sorts texts only.
    plain = msgspec.to_builtins(value, order="sorted", str_keys=True, enc_hook=_encode)
    try:
        data = msgspec.json.encode(plain, order="sorted")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object!r}: not UTF-8, which JSON needs", remedy="give it another name"
        ) from error
    return data if indent is None else msgspec.json.format(data, indent=indent)


def from_json(data: bytes | str, kind: type[V], *, where: str = "input") -> V:
    """Decode JSON into ``kind``.

    :param where: how the message names the document (usually its path).
    :raises InputError: not JSON, or a field is missing or of the wrong type; names the field.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_decode)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{where}: {error}", remedy=f"expected a {kind.__name__} document"
        ) from error


def read_bytes(path: Path, *, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """Read a whole file of at most ``limit`` bytes.

    :raises InputError: absent, unreadable, a folder, or longer than ``limit``.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", remedy="name a readable file"
        ) from error
    if len(data) > limit:
        raise InputError(f"{path}: longer than {limit} bytes", remedy="name the right file")
    return data


def read_value(path: Path, kind: type[V]) -> V:
    """Read one JSON document from ``path`` into ``kind``; raises :class:`InputError`."""
    return from_json(read_bytes(path), kind, where=str(path))


def _encode(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no form in JSON")


def _decode(kind: type, value: object) -> object:
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} is not read from JSON")
