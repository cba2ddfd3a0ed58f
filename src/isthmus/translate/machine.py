"""The emulation core (``core/*.c``) as Python sees it: one instruction on a borrowed register file.

Memory is what the caller says it is.  The core asks for an operand by a callback; an answer that is
not at hand yet ends the attempt without any change (``PENDING``), the caller fetches it and
executes again.  So the core stays synchronous, whatever the memory is behind.
"""

import enum
from typing import Any, Protocol

from isthmus.translate._core import ffi, lib


class Kind(enum.IntEnum):
    """What became of the instruction (``enum isthmus_kind``)."""

    DONE = lib.ISTHMUS_DONE
    NOT_OURS = lib.ISTHMUS_NOT_OURS
    FAULT = lib.ISTHMUS_FAULT
    MORE_BYTES = lib.ISTHMUS_MORE_BYTES
    LACKS_STATE = lib.ISTHMUS_LACKS_STATE
    PENDING = lib.ISTHMUS_PENDING
    REFUSED = lib.ISTHMUS_REFUSED


class PageFaultError(Exception):
    """The memory at ``address`` cannot be reached so; ``error_code`` as the CPU would push it."""

    def __init__(self, address: int, error_code: int) -> None:
        super().__init__(f"page fault at {address:#x}")
        self.address = address
        self.error_code = error_code


class UnansweredError(Exception):
    """The memory is not at hand yet."""


class Memory(Protocol):
    """Linear memory as the instruction sees it."""

    def load(self, address: int, size: int) -> bytes:
        """Read; raises PageFaultError or UnansweredError."""

    def store(self, address: int, data: bytes) -> None:
        """Write, for good; raises PageFaultError or UnansweredError."""


class Machine:
    """A register file and the last outcome; both are the core's own structures.

    ``state`` is ``struct isthmus_machine``, ``outcome`` is ``struct isthmus_outcome``; see
    ``core/machine.h`` for their fields.
    """

    def __init__(self) -> None:
        self.state: Any = ffi.new("struct isthmus_machine *")
        self.outcome: Any = ffi.new("struct isthmus_outcome *")
        self._memory: Any = ffi.new("struct isthmus_memory *")
        self._memory.move = lib.isthmus_python_move
        self._slot: list[Memory] = []
        self._handle = ffi.new_handle(self._slot)
        self._memory.context = self._handle

    def execute(self, code: bytes, memory: Memory) -> Kind:
        """Execute the one instruction that ``code`` begins with."""
        self._slot[:] = [memory]
        lib.isthmus_execute(self.state, code, len(code), self._memory, self.outcome)
        return Kind(self.outcome.kind)

    @property
    def mnemonic(self) -> str:
        """The mnemonic of the last outcome in upper case, "" if it was not ours."""
        return mnemonic(self.outcome.mnemonic)

    @property
    def family(self) -> str:
        """The family of the last outcome if it was REFUSED, else ""."""
        return family(self.outcome.refused)


def mnemonic(number: int) -> str:
    """The name of ``enum isthmus_mnemonic``."""
    return str(ffi.string(lib.isthmus_mnemonic_name(number)).decode("ascii"))


def family(number: int) -> str:
    """The name of ``enum isthmus_family``: instructions that are known and done by nobody."""
    return str(ffi.string(lib.isthmus_refused_name(number)).decode("ascii"))


def families() -> frozenset[str]:
    """All families that the core refuses by name."""
    return frozenset(family(number) for number in range(1, lib.ISTHMUS_FAMILIES))


def mnemonics() -> frozenset[str]:
    """All that the core can execute."""
    return frozenset(mnemonic(number) for number in range(1, lib.ISTHMUS_MNEMONICS))


@ffi.def_extern(error=lib.ISTHMUS_UNANSWERED)  # type: ignore[untyped-decorator]
def isthmus_python_move(
    context: Any, access: int, address: int, data: Any, size: int, fault: Any, error: Any
) -> int:
    """Serve the core's memory callback from the Python object that is executing."""
    memory: Memory = ffi.from_handle(context)[0]
    try:
        if access == lib.ISTHMUS_WRITE:
            memory.store(address, bytes(ffi.buffer(data, size)))
        else:
            ffi.memmove(data, memory.load(address, size), size)
    except PageFaultError as refused:
        fault[0] = refused.address
        error[0] = refused.error_code
        return int(lib.ISTHMUS_PAGE_FAULT)
    except UnansweredError:
        return int(lib.ISTHMUS_UNANSWERED)
    return int(lib.ISTHMUS_OK)
