"""Only what pyproject.toml cannot say: what is compiled.

Two modules are made with cffi. The third is no module of Python's: it is the library that
`isthmus run` preloads into programs, built here so that no user needs a compiler.
"""

from pathlib import Path

from setuptools import Extension, setup

CORE = "src/isthmus/translate/core"
PROCESS = "src/isthmus/translate/process"


def files(folder: str, suffix: str) -> list[str]:
    """A folder's files of a kind, by the paths from here that setuptools wants."""
    return sorted(f"{folder}/{path.name}" for path in Path(folder).glob(f"*.{suffix}"))


setup(
    cffi_modules=[
        "src/isthmus/translate/build_core.py:ffibuilder",
        "src/isthmus/cpu/build_cpuid.py:ffibuilder",
    ],
    ext_modules=[
        Extension(
            "isthmus.translate._preload",
            sources=[*files(PROCESS, "c"), *files(CORE, "c")],
            include_dirs=[CORE],
            depends=[*files(PROCESS, "h"), *files(CORE, "h"), *files(CORE, "inc")],
            # The handler may lean on nothing: not on FS (stack protector), not on the C library's
            # copying (fortified or not), not on the loader (lazy binding).
            extra_compile_args=[
                "-std=gnu11",
                "-O2",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-fno-stack-protector",
                "-U_FORTIFY_SOURCE",
                "-ftls-model=initial-exec",
                "-fno-tree-loop-distribute-patterns",
            ],
            extra_link_args=[
                "-Wl,-z,initfirst",
                "-Wl,-z,now",
                "-Wl,-z,defs",
                "-ldl",
                "-lpthread",
            ],
        )
    ],
)
