"""What is wrong with a stream, in one line: where, in which record, which field."""

from typing import ClassVar, NoReturn, Self

from isthmus.errors import IsthmusError

RESUMES = (
    "nothing more is sent on: the destination drops its half, and the source resumes the guest"
)


class StreamError(IsthmusError):
    """The stream is not one that Xen's destination may be given.

    ``offset``: of the record's first byte in the stream that came in; ``record``: its name, or what
    stood in its place; ``reason``: which field, what it holds, what it should.
    """

    exit_code: ClassVar[int] = 1
    offset = 0
    record = ""
    reason = ""

    @classmethod
    def at(cls, offset: int, record: str, reason: str) -> Self:
        """The error with its place."""
        error = cls(f"Xen stream, offset {offset:#x}, {record}: {reason}", remedy=RESUMES)
        error.offset, error.record, error.reason = offset, record, reason
        return error


class BodyError(Exception):
    """Raised by the checks of one body, which do not know where it stands."""


def wrong(reason: str) -> NoReturn:
    """Say what is wrong with the body at hand."""
    raise BodyError(reason)
