"""The demo's report: hostile text stays text."""

from isthmus.qualification.demo.pairs import pair_of
from isthmus.qualification.demo.report import html
from isthmus.qualification.demo.result import ActResult, DemoResult, MoveResult


def result(**changes: object) -> DemoResult:
    evil = "<script>alert(1)</script>"
    act = ActResult(
        name="without",
        title="t",
        ok=False,
        outcome=evil,
        explanation=evil,
        console=(evil,),
        commands={evil: evil},
        faults=(evil,),
        moves=(MoveResult(number=1, source=evil, destination="b", total_ms=1, downtime_ms=0),),
    )
    return DemoResult(
        source=evil, destination="b", engine="tcg", engine_reason=evil, qemu="7", kernel=evil,
        ok=False, only_source=(evil,), only_destination=(), level=evil, level_reasons=(evil,),
        acts=(act,), seconds=1.0,
    )  # fmt: skip


def test_everything_is_escaped() -> None:
    assert "<script" not in html(result())


def test_pairs_by_name() -> None:
    assert pair_of("2008") == ("phenom", "Penryn")
    assert pair_of(" EPYC , Nehalem ") == ("EPYC", "Nehalem")
