"""Programs of this folder in a guest's image, which run beside its payload.

``contend`` makes a kernel call its hypervisor; ``misaligned`` uses a bit of MXCSR only AMD has.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from isthmus.qualification.lab.image import GuestImage, build_image
from isthmus.qualification.lab.initramfs import file, folder
from isthmus.qualification.payload.build import compiled, compiler_version
from isthmus.qualification.store import Made, key_of, obtain


def image_with(
    name: str, cache: Path, progress: Callable[[str], None] = lambda _: None
) -> GuestImage:
    """The usual guest image with the program ``name`` beside its payload.

    :raises EnvironmentLackError: as for any image, or there is no compiler.
    """
    unit = f"{name}.c"
    source = resources.files("isthmus.qualification.kvm.cases").joinpath(unit).read_bytes()
    key = key_of(compiler_version("gcc"), source)

    def make(scratch: Path) -> Made:
        progress(f"compiling {name}")
        return Made(files={name: compiled({unit: source}, scratch, "gcc")})

    program = obtain(cache, "programs", key, make).read(name)
    more = (folder("beside"), file(f"beside/{name}", program, executable=True))
    return build_image(cache=cache, progress=progress, more=more)
