"""Where elements stand in an XML document, in bytes, so that one can be replaced and all else kept.

A serialiser would write the document anew: other quotes, other spaces, other entities.  Whoever
keeps a domain's XML under version control would see their whole file change.  So the places come
from expat, and the edit is a splice.  Hostile input: a DOCTYPE is refused, so no entity exists.
"""

from collections.abc import Iterable
from xml.parsers import expat

from isthmus.errors import InputError
from isthmus.values import Value

MAX_DEPTH = 256
"""Elements within each other; libvirt's own reader stops at about that."""


class Span(Value, frozen=True):
    """An element's place: ``path`` of names below the root, ``data[start:end]`` is all of it.

    ``data[inner:close]`` is its content, both ``end`` for an empty element (``<a/>``).  A comment
    has the name ``#comment``.
    """

    path: tuple[str, ...]
    start: int
    inner: int
    close: int
    end: int

    @property
    def empty(self) -> bool:
        """Whether it is written as ``<a/>``."""
        return self.inner == self.end


def spans(data: bytes, *, depth: int, where: str) -> tuple[Span, ...]:
    """The elements and comments at most ``depth`` below the root, in the order of their begin.

    :raises InputError: not well-formed, not UTF-8, with a DOCTYPE, or too deep.
    """
    reader = _Reader(data, depth, where)
    reader.read()
    return tuple(sorted(reader.found, key=lambda span: span.start))


def spliced(data: bytes, edits: Iterable[tuple[int, int, bytes]]) -> bytes:
    """``data`` with each ``(start, end, new)`` put in; the edits must not overlap."""
    parts, at = [], 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        assert start >= at, "edits overlap"
        parts += [data[at:start], new]
        at = end
    return b"".join([*parts, data[at:]])


def indentation(data: bytes, at: int) -> str:
    """The white space before ``at`` in its line; empty where something else stands there."""
    line = data[data.rfind(b"\n", 0, at) + 1 : at]
    return line.decode() if not line.strip() else ""


class _Reader:
    def __init__(self, data: bytes, depth: int, where: str) -> None:
        self.data = data
        self.depth = depth
        self.where = where
        self.found: list[Span] = []
        self._open: list[tuple[str, int]] = []

    def read(self) -> None:
        parser = expat.ParserCreate("UTF-8")
        parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        parser.XmlDeclHandler = self._declared
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = lambda name, _: self._begin(name, parser.CurrentByteIndex)
        parser.EndElementHandler = lambda _: self._end(parser.CurrentByteIndex)
        parser.CommentHandler = lambda _: self._comment(parser.CurrentByteIndex)
        try:
            parser.Parse(self.data, True)  # noqa: FBT003 (positional only)
        except expat.ExpatError as error:
            raise InputError(
                f"{self.where}: {str(error)[:200]}", remedy="name a well-formed XML document"
            ) from error

    def _declared(self, _version: str, encoding: str | None, _standalone: int) -> None:
        if encoding is not None and encoding.upper() not in {"UTF-8", "US-ASCII"}:
            raise InputError(
                f"{self.where}: written in {encoding[:20]}", remedy="write it in UTF-8"
            )

    def _doctype(self, *_: object) -> None:
        raise InputError(f"{self.where}: a DOCTYPE, which no domain has", remedy="remove it")

    def _begin(self, name: str, at: int) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise InputError(
                f"{self.where}: more than {MAX_DEPTH} elements within each other",
                remedy="name a domain's XML",
            )
        self._open.append((name, at))

    def _end(self, at: int) -> None:
        path = tuple(name for name, _ in self._open[1:])
        _, start = self._open.pop()
        if len(path) > self.depth:
            return
        inner = _tag_end(self.data, start)
        if self.data[inner - 2 : inner] == b"/>":
            self.found.append(Span(path=path, start=start, inner=inner, close=inner, end=inner))
        else:
            end = self.data.index(b">", at) + 1
            self.found.append(Span(path=path, start=start, inner=inner, close=at, end=end))

    def _comment(self, at: int) -> None:
        if 0 < len(self._open) <= self.depth:
            path = (*(name for name, _ in self._open[1:]), "#comment")
            end = self.data.index(b"-->", at) + 3
            self.found.append(Span(path=path, start=at, inner=end, close=end, end=end))


def _tag_end(data: bytes, start: int) -> int:
    """Behind the ``>`` of the tag that begins at ``start``; a quoted value may hold a ``>``."""
    quote = 0
    for at in range(start, len(data)):
        sign = data[at]
        if quote:
            if sign == quote:
                quote = 0
        elif sign in b"\"'":
            quote = sign
        elif sign == ord(">"):
            return at + 1
    raise AssertionError("expat has seen the end of this tag")
