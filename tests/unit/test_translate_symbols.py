"""Symbols for the addresses of a guest's kernel, from files that a user names."""

import pytest

from isthmus.errors import InputError
from isthmus.translate.symbols import read_symbols

MAP = """ffffffff81000000 T _text
ffffffff81000040 t read_tsc
ffffffff81000100 D data
ffffffff81a00f00 T asm_exc_invalid_op
"""
SLIDE = 0x1C00_0000
ENTRY = 0xFFFF_FFFF_81A0_0F00 + SLIDE


def test_the_slide_comes_from_the_handler(tmp_path) -> None:
    path = tmp_path / "System.map"
    path.write_text(MAP)
    symbols = read_symbols(path, ENTRY)
    assert symbols.name(0xFFFF_FFFF_8100_0044 + SLIDE) == "read_tsc+0x4"
    assert symbols.name(0xFFFF_FFFF_8100_0100 + SLIDE) == "read_tsc+0xc0"  # data has no code
    assert symbols.name(0x401000) == ""  # a program's
    assert symbols.name(0xFFFF_FFFF_C000_0000) == ""  # a module's
    assert symbols.name(0xFFFF_8000_0000_0000) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no symbols"),
        ("\x7fELF\x02\x01\x01 rubbish \x00\xff", "no symbols"),
        (MAP.replace("0f00", "0f40"), "another kernel"),
        ("0000000000000000 T asm_exc_invalid_op\n", "without addresses"),
        ("zzzz T asm_exc_invalid_op\n", "no symbols"),
    ],
)
def test_another_file_is_refused_in_words(tmp_path, text, message) -> None:
    path = tmp_path / "symbols"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_symbols(path, ENTRY)
