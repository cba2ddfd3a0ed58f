"""Only what pyproject.toml cannot say: two modules are compiled with cffi."""

from setuptools import setup

setup(
    cffi_modules=[
        "src/isthmus/translate/build_core.py:ffibuilder",
        "src/isthmus/cpu/build_cpuid.py:ffibuilder",
    ]
)
