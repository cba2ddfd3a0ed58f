"""Only what pyproject.toml cannot say: what is compiled.

Two modules are made with cffi. The third is no module of Python's: it is the library that
`isthmus run` preloads into programs, built here so that no user needs a compiler.
"""

from pathlib import Path

from setuptools import Extension, setup

CORE = "src/isthmus/translate/core"


def core(suffix: str) -> list[str]:
    """The core's files of a kind, by the paths from here that setuptools wants."""
    return sorted(f"{CORE}/{path.name}" for path in Path(CORE).glob(f"*.{suffix}"))


setup(
    cffi_modules=[
        "src/isthmus/translate/build_core.py:ffibuilder",
        "src/isthmus/cpu/build_cpuid.py:ffibuilder",
    ],
    ext_modules=[
        Extension(
            "isthmus.translate._preload",
            sources=["src/isthmus/translate/preload.c", *core("c")],
            include_dirs=[CORE],
            depends=[*core("h"), *core("inc")],
            extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
            extra_link_args=["-Wl,-z,initfirst", "-Wl,-z,defs", "-ldl", "-lpthread"],
        )
    ],
)
