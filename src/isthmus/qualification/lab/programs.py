"""A program out of Debian packages with every shared library that it needs, nothing installed.

Which libraries those are is read from the ELF files themselves: the ``DT_NEEDED`` entries of the
program and, step by step, of what they name (System V ABI, chapter 5, dynamic section).
"""

import struct
from collections.abc import Collection, Mapping
from pathlib import Path

from isthmus.errors import InputError
from isthmus.qualification.lab import packages
from isthmus.qualification.lab.packages import HERE, Lists, Package
from isthmus.values import Value

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_SONAME = 0, 1, 5, 14
_LIBRARY_LIMIT = 128 << 20


class Linkage(Value, frozen=True):
    """What an ELF file says of itself: its own name as a library, what it needs, its loader."""

    soname: str = ""
    needed: tuple[str, ...] = ()
    interpreter: str = ""


def needed_packages(roots: Collection[str], *, lists: Lists = HERE) -> tuple[Package, ...]:
    """The packages ``roots`` and the packages of libraries below them.

    :raises EnvironmentLackError: apt's lists do not have them.
    """
    return packages.with_needs(roots, lambda name: "lib" in name or name in roots, lists=lists)


def files(
    chosen: Collection[Package],
    programs: Collection[str],
    data: Collection[str],
    *,
    scratch: Path,
    lists: Lists = HERE,
) -> dict[str, bytes]:
    """The named ``programs`` and ``data`` files of packages, and the programs' libraries.

    Libraries are given as ``lib/x86_64-linux-gnu/SONAME``, where Debian's loader looks, and the
    loader itself at the path that the programs name.

    :raises InputError: a file or a library is in none of the packages.
    :raises EnvironmentLackError: as :func:`packages.opened`.
    """
    found: dict[str, bytes] = {}
    libraries: dict[str, bytes] = {}
    for _, archive in packages.each_opened(chosen, scratch=scratch, lists=lists):
        for name in archive.names:
            if name in programs or name in data:
                found[name] = archive.read(name)
            elif ".so" in Path(name).name and name.startswith(("lib/", "usr/lib/", "lib64/")):
                content = archive.read(name)
                if content.startswith(b"\x7fELF") and (soname := linkage(content, name).soname):
                    libraries.setdefault(soname, content)
    for name in (*programs, *data):
        if name not in found:
            raise InputError(f"{name}: in none of the packages", remedy="run `apt-get update`")
    return found | _linked({name: found[name] for name in programs}, libraries)


def _linked(programs: Mapping[str, bytes], libraries: Mapping[str, bytes]) -> dict[str, bytes]:
    """The libraries and loaders that ``programs`` need, by path."""
    placed: dict[str, bytes] = {}
    waiting = [linkage(content, name) for name, content in programs.items()]
    seen: set[str] = set()
    while waiting:
        facts = waiting.pop()
        loader = Path(facts.interpreter).name
        for soname in (*facts.needed, *((loader,) if loader else ())):
            if soname in seen:
                continue
            seen.add(soname)
            content = libraries.get(soname)
            if content is None:
                raise InputError(f"{soname}: in none of the packages", remedy="name its package")
            place = facts.interpreter.lstrip("/") if soname == loader else ""
            placed[place or f"lib/x86_64-linux-gnu/{soname}"] = content
            waiting.append(linkage(content, soname))
    return placed


def linkage(elf: bytes, where: str) -> Linkage:
    """Read the dynamic section of a 64-bit little-endian ELF file.

    :raises InputError: it is damaged.
    """
    try:
        return _linkage(elf)
    except (struct.error, IndexError, ValueError) as error:
        raise InputError(f"{where}: a damaged ELF file: {error}") from error


def _linkage(elf: bytes) -> Linkage:
    if elf[:6] != b"\x7fELF\x02\x01" or len(elf) > _LIBRARY_LIMIT:
        return Linkage()
    table = struct.unpack_from("<Q", elf, 0x20)[0]
    size, count = struct.unpack_from("<HH", elf, 0x36)
    # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz
    headers = [struct.unpack_from("<IIQQQQ", elf, table + n * size) for n in range(count)]
    interpreter, dynamic = "", b""
    for kind, _, offset, _, _, length in headers:
        if kind == _PT_INTERP:
            interpreter = elf[offset : offset + length].rstrip(b"\0").decode()
        elif kind == _PT_DYNAMIC:
            dynamic = elf[offset : offset + length]
    entries: list[tuple[int, int]] = []
    for tag, value in struct.iter_unpack("<QQ", dynamic[: len(dynamic) // 16 * 16]):
        if tag == _DT_NULL:
            break
        entries.append((tag, value))
    address = next((value for tag, value in entries if tag == _DT_STRTAB), None)
    if address is None:
        return Linkage(interpreter=interpreter)
    strings = next(
        offset + address - start
        for kind, _, offset, start, _, length in headers
        if kind == _PT_LOAD and start <= address < start + length
    )

    def text(value: int) -> str:
        begin = strings + value
        return elf[begin : elf.index(b"\0", begin)].decode()

    return Linkage(
        soname=next((text(value) for tag, value in entries if tag == _DT_SONAME), ""),
        needed=tuple(text(value) for tag, value in entries if tag == _DT_NEEDED),
        interpreter=interpreter,
    )
