"""What runs in guests of the lab besides the payload: a kernel of its own, and 32-bit programs.

Each is assembled here by the system's compiler; what it says is in the head of its source.
"""

from importlib import resources
from pathlib import Path

from isthmus.qualification.lab.image import GuestImage
from isthmus.qualification.payload.build import compiled, compiler_version
from isthmus.qualification.store import Made, Stored, key_of, obtain

_KERNEL = (
    "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0", "-Wl,--oformat=binary",
    "-Wl,--build-id=none", "-Wl,-N", "-Wl,-e,0",
)  # fmt: skip
"""A file that is laid out by the source alone; its addresses are offsets in one segment."""

_PROGRAM_32 = ("-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-s")
"""A 32-bit program without a C library, so that no multilib is needed."""


def modes_guest(cache: Path) -> GuestImage:
    """The kernel of ``modes.S``, with an initrd that it does not look at.

    :raises EnvironmentLackError: there is no compiler.
    """
    made = _assembled(cache, "modes", _KERNEL)
    return GuestImage(
        kernel=made.folder / "modes",
        initrd=made.folder / "empty",
        release="modes",
        key=made.folder.name,
    )


def entry_program(cache: Path, entry: str, *, abroad: bool = False) -> bytes:
    """The 32-bit program of ``entries.S`` that enters its kernel by ``entry``.

    :param entry: ``int80``, ``vdso``, ``sysenter`` or ``syscall``.
    :param abroad: only on the hosts of the maker that has it, and else by INT 80h.
    :raises EnvironmentLackError: there is no compiler.
    """
    words = (f"-DENTRY_{entry}", *(["-DABROAD"] if abroad else []))
    return _assembled(cache, "entries", (*_PROGRAM_32, *words)).read("entries")


def _assembled(cache: Path, name: str, flags: tuple[str, ...]) -> Stored:
    file = f"{name}.S"
    source = resources.files("isthmus.qualification.kvm.guests").joinpath(file).read_bytes()
    key = key_of(compiler_version("gcc"), *flags, source)

    def make(scratch: Path) -> Made:
        return Made(files={name: compiled({file: source}, scratch, "gcc", flags), "empty": b"\0"})

    return obtain(cache, "guests", key, make)
