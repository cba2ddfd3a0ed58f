"""Featuresets as XAPI writes them: words of 32 bits in hexadecimal, joined by ``-``.

What a word holds is Xen's affair (:data:`isthmus.cpu.registers.FEATURESET`); a newer Xen has more
words.  How XAPI reads and compares them: xen-api ``ocaml/libs/cpuid/cpuid.ml``.
"""

from collections.abc import Iterable

from isthmus.cpu.decode import REPEATED
from isthmus.cpu.features import by_cpuid
from isthmus.cpu.registers import FEATURESET
from isthmus.errors import InputError

Words = tuple[int, ...]
"""A featureset; an empty one says that nothing is known."""

_MAX_WORDS = 64


def parse(text: str, *, where: str) -> Words:
    """The words of a featureset; none where the text is empty.

    :raises InputError: it is none.
    """
    if not text:
        return ()
    parts = text.split("-")
    if len(parts) > _MAX_WORDS or not all(_is_word(part) for part in parts):
        raise InputError(
            f"{where}: {text[:60]!r} is no featureset",
            remedy="XAPI writes words of eight hexadecimal digits, joined by -",
        )
    return tuple(int(part, 16) for part in parts)


def _is_word(part: str) -> bool:
    return len(part) == 8 and set(part) <= set("0123456789abcdefABCDEF")


def written(words: Words) -> str:
    """The featureset as XAPI writes it."""
    return "-".join(f"{word:08x}" for word in words)


def common(sets: Iterable[Words]) -> Words:
    """What all of them have.  As XAPI does, one that is not known takes nothing away."""
    result: Words = ()
    for words in sets:
        if not result or not words:
            result = result or words
            continue
        length = max(len(result), len(words))
        result = tuple(
            a & b for a, b in zip(_wide(result, length), _wide(words, length), strict=True)
        )
    return result


def missing(wanted: Words, offered: Words) -> Words:
    """What ``wanted`` has and ``offered`` has not, as long as the longer of them.

    Stricter than XAPI's own fallback (``is_compatible'`` in ``ocaml/xenopsd/xc/
    xenops_server_xen.ml``), which looks at no word that the host does not have.
    """
    length = max(len(wanted), len(offered))
    return tuple(a & ~b for a, b in zip(_wide(wanted, length), _wide(offered, length), strict=True))


def features(words: Words) -> frozenset[str]:
    """The features that are known by name."""
    places = by_cpuid()
    found = set()
    for (leaf, subleaf, register), word in zip(FEATURESET, words, strict=False):
        # AMD's CPUs repeat leaf 1 EDX there, which names nothing anew.
        value = word & ~REPEATED if (leaf, register) == (0x80000001, "edx") else word
        for bit in range(32):
            if value >> bit & 1 and (name := places.get((leaf, subleaf, register, bit))):
                found.add(name)
    return frozenset(found)


def names(words: Words) -> tuple[str, ...]:
    """Every bit of the words by name, or as ``word N bit M`` where it has none."""
    places = by_cpuid()
    found = []
    for number, word in enumerate(words):
        for bit in range(32):
            if not word >> bit & 1:
                continue
            place = FEATURESET[number] if number < len(FEATURESET) else None
            if place and (place[0], place[2]) == (0x80000001, "edx") and REPEATED >> bit & 1:
                continue
            found.append((place and places.get((*place, bit))) or f"word {number} bit {bit}")
    return tuple(found)


def _wide(words: Words, length: int) -> Words:
    return words + (0,) * (length - len(words))
