"""What an ELF file says of the libraries it needs, and what is made of damaged ones."""

import sys
from pathlib import Path

import pytest

from isthmus.errors import InputError
from isthmus.qualification.lab.programs import linkage


def test_a_program_names_its_libraries_and_its_loader() -> None:
    shell = Path("/bin/sh").resolve()
    facts = linkage(shell.read_bytes(), str(shell))
    assert "libc.so.6" in facts.needed
    assert facts.interpreter.endswith("ld-linux-x86-64.so.2")


def test_a_library_names_itself() -> None:
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    path = next(Path(name) for name in mapped if name.endswith("/libc.so.6"))
    assert linkage(path.read_bytes(), str(path)).soname == "libc.so.6"


def test_what_is_no_elf_file_needs_nothing() -> None:
    assert linkage(b"INPUT(-lc)", "a linker script").needed == ()


def test_a_damaged_file_is_one_clear_error() -> None:
    whole = Path(sys.executable).resolve().read_bytes()
    with pytest.raises(InputError, match="damaged"):
        linkage(whole[:0x100], "cut short")
