"""What is wrong with a stream, in one line: where, in which record, which field."""

from typing import ClassVar, NoReturn

from isthmus.errors import IsthmusError

RESUMES = (
    "nothing more is sent on: the destination drops its half, and the source resumes the guest"
)


class StreamError(IsthmusError):
    """The stream is not one that Xen's destination may be given.

    :param offset: of the record's first byte in the stream that came in.
    :param record: its name, or what stood in its place.
    :param reason: which field, what it holds, what it should.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, offset: int, record: str, reason: str) -> None:
        super().__init__(f"Xen stream, offset {offset:#x}, {record}: {reason}", remedy=RESUMES)
        self.offset = offset
        self.record = record
        self.reason = reason


class BodyError(Exception):
    """Raised by the checks of one body, which do not know where it stands."""


def wrong(reason: str) -> NoReturn:
    """Say what is wrong with the body at hand."""
    raise BodyError(reason)
