"""What translation costs: counted with QEMU's own share, warned of once, in a log with a bound."""

import logging

import msgspec
import pytest

from isthmus.translate.cost import AGAIN_S, Watch, warning, while_silent
from isthmus.translate.log import NAME, open_log
from isthmus.translate.outside import TranslatorStatus
from isthmus.translate.outside.status import SAMPLE_EVERY, SAMPLES, Tally

LEVEL = "isthmus level phenom Penryn"


def status(share: float, problem: str = "") -> TranslatorStatus:
    return TranslatorStatus(
        armed=True, running=True, traps=9, translated={"EXTRQ": 7, "RDTSCP": 9}, passed=0,
        us_per_instruction=300.0, rate_hz=640.4, busy_share=share, problem=problem,
    )  # fmt: skip


def test_the_warning_is_one_line_with_rate_and_advice() -> None:
    line = warning(status(0.123), 0.05, LEVEL)
    assert "\n" not in line
    for part in (
        "12.3%",
        "5.0%",
        "640 instructions/s",
        "RDTSCP",
        f"reboot the guest levelled: {LEVEL}",
    ):
        assert part in line


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_what_is_within_the_bound_is_not_warned_of(share: float) -> None:
    assert warning(status(share), 0.05, LEVEL) == ""


def test_of_a_silent_guest_it_is_told_how_its_translator_held_it() -> None:
    told = while_silent(status(0.97))
    for part in ("97%", "640 instructions/s", "RDTSCP"):
        assert part in told
    assert while_silent(msgspec.structs.replace(status(0.0), traps=0)) == ""


def test_the_log_is_warned_once_then_rarely_and_told_when_it_is_over() -> None:
    watch = Watch(0.05, LEVEL)
    assert [line.split(":")[0] for line in watch.judge(status(0.2), 0)] == ["warning"]
    assert watch.judge(status(0.3), 5) == []
    assert len(watch.judge(status(0.3), AGAIN_S)) == 1
    assert watch.judge(status(0.01), AGAIN_S + 5) == ["translation takes 1.0% of a vCPU again"]
    assert watch.judge(status(0.01), AGAIN_S + 10) == []
    assert len(watch.judge(status(0.2), AGAIN_S + 15)) == 1


def test_a_problem_is_told_when_it_comes_and_when_it_goes() -> None:
    watch = Watch(0.05, LEVEL)
    assert watch.judge(status(0, "no entry"), 0) == ["problem: no entry"]
    assert watch.judge(status(0, "no entry"), 5) == []
    assert watch.judge(status(0), 10) == ["the problem is over"]


def test_qemus_own_time_counts_for_every_stop() -> None:
    tally = Tally()
    for took in (100_000, 300_000, 900_000):
        tally.stop(took)
    assert tally.stop_ns == 300_000
    tally.done(["EXTRQ"], 0x401000, 0x5000)
    tally.spent(200_000)
    tally.spent(50_000, translated=False)  # a #UD of the guest's own
    assert tally.busy_s == pytest.approx((200_000 + 50_000 + 2 * 300_000) / 1e9)
    assert tally.us_per_instruction == 200


def test_few_traps_are_measured() -> None:
    tally = Tally()
    measured = 0
    for _ in range(10 * SAMPLE_EVERY):
        tally.traps += 1
        if tally.wants_stop:
            measured += 1
            tally.stop(1)
    assert SAMPLES <= measured <= SAMPLES + 10


def test_the_log_has_a_bound_and_keeps_one_old_file(tmp_path) -> None:
    log = open_log(tmp_path, limit=4096, standard=False)
    try:
        for number in range(1000):
            log.warning("warning: %d %s", number, "x" * 80)
        sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
        assert sizes.keys() == {NAME, f"{NAME}.1"}
        assert max(sizes.values()) <= 4096
        assert " 999 " in (tmp_path / NAME).read_text()
    finally:
        for name in (log.name, "asyncio"):
            logging.getLogger(name).handlers.clear()
