"""Only what pyproject.toml cannot say: the emulation core is compiled with cffi."""

from setuptools import setup

setup(cffi_modules=["src/isthmus/translate/build_core.py:ffibuilder"])
