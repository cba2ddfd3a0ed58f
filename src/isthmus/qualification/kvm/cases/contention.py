"""The program ``contend.c`` in a guest's image: what makes a kernel call its hypervisor."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from isthmus.qualification.lab.image import GuestImage, build_image
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.qualification.payload.build import compiled, compiler_version
from isthmus.qualification.store import Made, key_of, obtain

SAYS = "contend: "
"""What its lines on the console begin with; the word before ``rounds`` only ever rises."""


def contending_image(cache: Path, progress: Callable[[str], None] = lambda _: None) -> GuestImage:
    """The usual guest image with the program beside its payload.

    :raises EnvironmentLackError: as for any image, or there is no compiler.
    """
    source = resources.files("isthmus.qualification.kvm.cases").joinpath("contend.c").read_bytes()
    key = key_of(compiler_version("gcc"), source)

    def make(scratch: Path) -> Made:
        progress("compiling what contends for the kernel's locks")
        return Made(files={"contend": compiled({"contend.c": source}, scratch, "gcc")})

    program = obtain(cache, "programs", key, make).read("contend")
    more = (folder("beside"), file("beside/contend", program, executable=True))
    return build_image(cache=cache, progress=progress, more=more)
