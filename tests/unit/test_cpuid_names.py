"""The program ``cpuid`` (Todd Allen), asked what each bit of the catalogue means.

A dump in which one bit is set is given to ``cpuid -f``; the line that then turns true must be the
one recorded in ``data/cpuid_words.json``, where each was compared with our name by eye.  One of its
lines is wrong: it calls bit 25 of AMD's 0x80000001 EDX (FFXSR, APM vol. 3, E.4.2) "SSE extensions".
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from isthmus.cpu.features import FEATURES, Feature
from isthmus.cpu.registers import vendor_words

WORDS: dict[str, str] = json.loads((Path(__file__).parent / "data/cpuid_words.json").read_text())[
    "words"
]
REGISTERS = ("eax", "ebx", "ecx", "edx")


def version() -> str:
    if shutil.which("cpuid") is None:
        return ""
    return subprocess.run(["cpuid", "-v"], capture_output=True, text=True, check=False).stdout


pytestmark = pytest.mark.skipif("20230120" not in version(), reason="no cpuid 20230120 here")


def dump(vendor: str, *features: Feature) -> str:
    """A dump of a CPU that has just these features."""
    leaves = {
        **{(leaf, 0): [0] * 4 for leaf in (*range(1, 0x25), *range(0x80000001, 0x80000027))},
        (0, 0): [0x24, *(vendor_words(vendor)[r] for r in REGISTERS if r != "eax")],
        (0x80000000, 0): [0x80000026, 0, 0, 0],
        (1, 0): [0x90672 if vendor == "GenuineIntel" else 0xA20F10, 0, 0, 0],
        (7, 0): [2, 0, 0, 0],
        (0xD, 0): [7, 0, 0, 0],
    }
    for feature in features:
        assert feature.leaf is not None
        assert feature.register is not None
        assert feature.bit is not None
        words = leaves.setdefault((feature.leaf, feature.subleaf or 0), [0] * 4)
        words[REGISTERS.index(feature.register)] |= 1 << feature.bit
    lines = (
        f"   {leaf:#010x} {subleaf:#04x}: "
        + " ".join(f"{r}={word:#010x}" for r, word in zip(REGISTERS, words, strict=True))
        for (leaf, subleaf), words in sorted(leaves.items())
    )
    return "\n".join(("CPU 0:", *lines, ""))


def true_lines(text: str, file: Path) -> frozenset[str]:
    file.write_text(text)
    done = subprocess.run(["cpuid", "-f", str(file)], capture_output=True, text=True, check=True)
    found = (re.fullmatch(r"\s*(.*?)\s*= true", line) for line in done.stdout.splitlines())
    return frozenset(match[1] for match in found if match)


def test_each_bit_is_what_cpuid_says_it_is(tmp_path: Path) -> None:
    wrong = {}
    bare = {
        vendor: true_lines(dump(vendor), tmp_path / "dump.txt")
        for vendor in ("GenuineIntel", "AuthenticAMD")
    }
    for name, words in WORDS.items():
        feature = FEATURES[name]
        vendor = "AuthenticAMD" if (feature.leaf or 0) >= 0x80000000 else "GenuineIntel"
        seen = true_lines(dump(vendor, feature), tmp_path / "dump.txt") - bare[vendor]
        if words not in seen:
            wrong[name] = seen
    assert wrong == {}


def test_most_of_the_catalogue_is_asked_for() -> None:
    placed = [
        name
        for name, feature in FEATURES.items()
        if feature.leaf is not None
        and feature.leaf < 0xC0000000
        and not 0x40000000 <= feature.leaf < 0x80000000
    ]
    assert len(WORDS) / len(placed) > 0.85
