"""The demo's report: one file that needs nothing else, in which hostile text stays text."""

import re

import pytest
from demo_results import levelled, move, result, translated, without
from lxml import etree

from isthmus.divergence.finding import Finding, Severity
from isthmus.qualification.demo.picture import picture
from isthmus.qualification.demo.report import html
from isthmus.qualification.demo.result import Command, HostFacts, Outcome, Stay

EVIL = "<script>alert('1')</script>\"onload=\"x&amp;"


def parsed(page: str) -> etree._Element:
    return etree.fromstring(page, etree.HTMLParser(recover=False))


def test_tells_the_whole_story() -> None:
    page = html(result())
    text = " ".join(parsed(page).itertext())
    for said in (
        "phenom", "GenuineIntel", "All as expected", "It died at RDTSCP.",
        "alive and correct after 10 moves", "RDTSCP 4410, EXTRQ 14", "qemu -cpu phenom",
        "rdtscp", "ssse3", "-cpu kvm64-v1,enforce", "sse4a", "Kernel panic - not syncing",
    ):  # fmt: skip
        assert said in text, said


def test_needs_nothing_from_outside() -> None:
    page = html(result())
    tree = parsed(page)
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page)
    assert not tree.xpath("//@src | //@href | //script | //link | //iframe")


def test_hostile_text_stays_text() -> None:
    finding = Finding(
        rule=EVIL, severity=Severity.NOTE, subject=EVIL, notice=EVIL, remedy=EVIL, source=EVIL,
        evidence=EVIL,
    )  # fmt: skip
    moves = tuple(move(n, source=EVIL, destination=EVIL, translated={EVIL: 1}) for n in range(1, 5))
    hostile: dict[str, object] = {
        "headline": EVIL, "explanation": EVIL, "console": (EVIL,), "faults": (EVIL,),
        "instructions": {EVIL: 1}, "findings": (finding,), "moves": moves,
        "outcome": Outcome.WRONG, "ok": False,
        "commands": (Command(host=EVIL, arguments=(EVIL,)),),
        "stays": (Stay(host=EVIL, begun_s=0.0, ended_s=1.0),),
    }  # fmt: skip
    host = HostFacts(name=EVIL, vendor=EVIL, brand=EVIL, only=(EVIL,))
    shown = result(
        without(**hostile), levelled(**hostile), translated(**hostile),
        source=host, destination=host, engine=EVIL, engine_reason=EVIL, qemu=EVIL, kernel=EVIL,
        level=EVIL, level_reasons=(EVIL,), began=EVIL, isthmus=EVIL,
    )  # fmt: skip
    page = html(shown)
    tree = parsed(page)
    assert not tree.xpath("//script | //@onload")
    assert "<script" not in page
    assert "alert('1')" in "".join(tree.itertext())


@pytest.mark.parametrize("count", [1, 2, 200])
def test_downtimes_are_drawn_to_scale(count: int) -> None:
    page = html(result(levelled(count)))
    bars = parsed(page).xpath("//rect[@class='bar']")
    assert len(bars) == count
    heights = {
        float(re.search(r"([\d.]+) ms", bar[0].text)[1]): float(bar.get("height")) for bar in bars
    }
    pixels = {height / downtime for downtime, height in heights.items()}
    assert max(pixels) - min(pixels) < 0.05  # all by one scale
    for bar in bars:
        x, width = float(bar.get("x")), float(bar.get("width"))
        assert 120 <= x <= x + width <= 860


def test_time_line_has_a_lane_for_each_act_and_a_cross_for_a_death() -> None:
    tree = parsed(html(result()))
    plot = tree.xpath("//svg[@aria-label='where each guest was, and when']")[0]
    assert len(plot.xpath("rect[@class='source']")) == 2
    assert len(plot.xpath("rect[@class='destination']")) == 1
    assert len(plot.xpath("path[@class='death']")) == 1


def test_an_act_that_never_moved_is_shown() -> None:
    failed = levelled(0, ok=False, outcome=Outcome.NOT_MOVED, headline="it did not boot", stays=())
    page = html(result(failed))
    assert "it did not boot" in page
    assert "Not as expected" in page


def test_the_picture_needs_nothing_from_outside() -> None:
    drawn = picture(result())
    tree = etree.fromstring(drawn.encode())
    text = "".join(tree.itertext()).replace("\xa0", " ")
    assert "alive and correct after 10 moves" in text
    assert not re.search(
        r"https?:|@import|url\((?!#)", drawn.replace("http://www.w3.org/2000/svg", "")
    )
