"""Build the emulation core as the extension module ``isthmus.translate._core`` (cffi, API mode).

The declarations are the header's own, so that Python and C cannot disagree.
"""

import re
from pathlib import Path

import cffi

_CORE = Path(__file__).parent / "core"


def _declarations() -> str:
    """The header without what cffi's parser does not take: preprocessor lines and comments."""
    text = (_CORE / "isthmus_core.h").read_text(encoding="utf-8")
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations())
ffibuilder.set_source(
    "isthmus.translate._core",
    '#include "isthmus_core.h"\n',
    sources=["src/isthmus/translate/core/decode.c", "src/isthmus/translate/core/execute.c"],
    include_dirs=["src/isthmus/translate/core"],
    depends=["src/isthmus/translate/core/isthmus_core.h"],
    extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
)
