"""The page of the crossings is what the record says."""

from pathlib import Path

from isthmus.qualification.exercise.crossing import Crossing, Pair
from isthmus.qualification.exercise.page import page
from isthmus.qualification.exercise.record import VARIABLE, Refused, Row, append, read

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current() -> None:
    rows = read(DOCS / "crossings.json")
    assert (DOCS / "crossings.md").read_text(encoding="utf-8") == page(rows), (
        "write it anew: python -m isthmus.qualification.exercise.page "
        "docs/crossings.json docs/crossings.md"
    )


def test_the_record_holds_what_is_promised() -> None:
    """At least 12 ordered pairs, every way between the makers and within them, all equal."""
    crossings = [row.crossing for row in read(DOCS / "crossings.json") if row.crossing]
    assert len({crossing.pair for crossing in crossings}) == len(crossings) >= 12
    assert {crossing.makers for crossing in crossings} == {
        (home, abroad)
        for home in ("AuthenticAMD", "GenuineIntel")
        for abroad in ("AuthenticAMD", "GenuineIntel")
    }
    assert all(crossing.ok for crossing in crossings)
    programs = [row.programs for row in read(DOCS / "crossings.json") if row.programs]
    assert {"strings", "crypto", "blas", "go"} <= {name for one in programs for name in one.names}


def test_a_row_is_appended_and_read_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "record"
    crossing = Crossing(
        pair=Pair("a", "b"), makers=("AuthenticAMD", "GenuineIntel"), lost=("aes",), encodings=9,
        missing=2, translated={"AESENC": 1200}, rounds=(3, 4, 5),
    )  # fmt: skip
    rows = (Row(crossing=crossing), Row(refused=Refused(home="a", abroad="c", subjects=("avx",))))
    append(rows[0])  # nobody wants a record: nothing is written
    monkeypatch.setenv(VARIABLE, str(path))
    for row in rows:
        append(row)
    assert read(path) == rows
    text = page(rows)
    assert "| a | b | AMD to Intel | aes | 2 of 9 | 3 + 4 + 5 | 1,200 | outside |" in text
    assert "| a | c | avx |" in text


def test_a_crossing_is_ok_only_if_all_of_it_is() -> None:
    fine = Crossing(
        pair=Pair("a", "b"), makers=("AuthenticAMD", "GenuineIntel"), lost=("aes",), encodings=9,
        missing=2, translated={"AESENC": 12}, rounds=(3, 4, 5),
    )  # fmt: skip
    assert fine.ok
    for change in (
        {"untouched": ("AESDEC",)},
        {"faults": ("round 3: aes",)},
        {"rounds": (3, 0, 5)},
    ):
        made = Crossing(
            **{**{name: getattr(fine, name) for name in fine.__struct_fields__}, **change}
        )
        assert not made.ok
        assert "**failed**" in page((Row(crossing=made),))
