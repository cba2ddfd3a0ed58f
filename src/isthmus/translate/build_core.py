"""Build the emulation core as the extension module ``isthmus.translate._core`` (cffi, API mode).

The declarations are the header's own, so that Python and C cannot disagree.
"""

import re
from pathlib import Path

import cffi

_CORE = Path(__file__).parent / "core"
_FROM_ROOT = "src/isthmus/translate/core"  # setuptools wants paths relative to setup.py

WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes"]


def sources() -> list[str]:
    """The names of the C files."""
    return sorted(path.name for path in _CORE.glob("*.c"))


def declarations() -> str:
    """The header without what cffi's parser does not take: preprocessor lines and comments."""
    text = (_CORE / "machine.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    names = re.findall(r"ISTHMUS_M\((\w+)\)", (_CORE / "mnemonics.inc").read_text("utf-8"))
    listed = "\n".join(f"ISTHMUS_{name}," for name in names)
    text = text.replace('#include "mnemonics.inc"', listed)
    families = re.findall(r"ISTHMUS_R\((\w+)\)", (_CORE / "refused.inc").read_text("utf-8"))
    listed = "\n".join(f"ISTHMUS_REFUSED_{name}," for name in families)
    text = text.replace('#include "refused.inc"', listed)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


ffibuilder = cffi.FFI()
ffibuilder.cdef(
    declarations()
    + """
    extern "Python" int isthmus_python_move(void *context, int access, uint64_t address,
                                            uint8_t *bytes, uint32_t size,
                                            uint64_t *fault_address, uint32_t *error_code);
    """
)
ffibuilder.set_source(
    "isthmus.translate._core",
    '#include "machine.h"\n',
    sources=[f"{_FROM_ROOT}/{name}" for name in sources()],
    include_dirs=[_FROM_ROOT],
    depends=[
        f"{_FROM_ROOT}/{path.name}" for path in sorted([*_CORE.glob("*.h"), *_CORE.glob("*.inc")])
    ],
    extra_compile_args=["-std=c11", "-O2", "-ffreestanding", *WARNINGS],
)
