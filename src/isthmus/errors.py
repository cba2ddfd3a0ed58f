"""The errors an operator can meet, each with its remedy and its exit code.

Library code raises one of these; only :mod:`isthmus.cli.main` turns them into a line on the
terminal and an exit status.  Anything else that escapes is a defect of Isthmus.

Exit codes (documented for users in ``docs/cli.md``):

====  =====================================================================================
0     done
1     the operation failed; the message says what state things are in
2     bad usage or bad input (file, field, value)
3     refused beforehand: preflight found something that could not work
4     the move failed and was rolled back: the guest runs on its source
5     the truth could not be established; both copies are held, an operator must decide
6     this machine lacks something (QEMU, a package, permission)
130   interrupted by the user
====  =====================================================================================
"""

from typing import ClassVar


class IsthmusError(Exception):
    """What went wrong, in one line, and what to do about it.

    :param message: the fact, naming file, field, host or guest.
    :param remedy: what the operator can do next; one sentence.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class InputError(IsthmusError):
    """A file, argument or value that the user gave cannot be used."""

    exit_code = 2


class RefusedError(IsthmusError):
    """Preflight found a reason why the move could not work; nothing was touched."""

    exit_code = 3


class RolledBackError(IsthmusError):
    """The move failed before commit and the guest runs on its source again."""

    exit_code = 4


class UndecidedError(IsthmusError):
    """Which copy of the guest is the true one cannot be established without the operator."""

    exit_code = 5


class LostError(IsthmusError):
    """No copy of the guest is left."""


class EnvironmentLackError(IsthmusError):
    """This machine lacks a program, package, kernel feature or permission."""

    exit_code = 6


class HypervisorError(IsthmusError):
    """A hypervisor refused a command or went away."""
