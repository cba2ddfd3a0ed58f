"""Metrics as Prometheus reads them: its own parser judges."""

from prometheus_client.parser import text_string_to_metric_families

from isthmus.migration.arming import Report
from isthmus.migration.metrics import exposition
from isthmus.translate.outside import TranslatorStatus
from isthmus.translate.placement import Translation
from isthmus.translate.table import Placement

STATUS = TranslatorStatus(
    armed=True, running=True, traps=12, translated={"EXTRQ": 7, "RDTSCP": 3}, passed=2,
    us_per_instruction=300.0, refused={"avx512": 4}, lacking={"VPADDD": 1}, busy_share=0.25,
    busy_s=1.5, since=1000.0,
)  # fmt: skip
OUTSIDE = Translation(placement=Placement.OUTSIDE, features=("sse4a",))


def samples(*reports: Report) -> dict[tuple[str, ...], float]:
    text = exposition(reports).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_counter_has_its_guest() -> None:
    found = samples(
        Report(guest="a", host="Penryn", alive=True, translation=OUTSIDE, status=STATUS),
        Report(guest="b", host="Penryn", alive=True, translation=OUTSIDE, problem="it is gone"),
        Report(guest="c", host="Penryn", alive=True),
    )
    assert found["isthmus_translated_total", "a", "EXTRQ"] == 7
    assert found["isthmus_refused_total", "avx512", "a"] == 4
    assert found["isthmus_lacking_total", "a", "VPADDD"] == 1
    assert found["isthmus_undefined_passed_total", "a"] == 2
    assert found["isthmus_translate_traps_total", "a"] == 12
    assert found["isthmus_translate_busy_ratio", "a"] == 0.25
    assert found["isthmus_translate_busy_seconds_total", "a"] == 1.5
    assert found["isthmus_translate_warn_ratio", "a"] == 0.05
    assert found["isthmus_translate_start_time_seconds", "a"] == 1000
    assert found["isthmus_translate_up", "a", "Penryn", "outside"] == 1
    assert found["isthmus_translate_up", "b", "Penryn", "outside"] == 0
    assert found["isthmus_translate_problem", "b"] == 1
    assert not [key for key in found if "c" in key]


def test_a_module_is_not_called_missing() -> None:
    inside = Translation(placement=Placement.INSIDE, features=("avx2",))
    found = samples(Report(guest="a", host="IvyBridge", alive=True, translation=inside))
    assert found == {("isthmus_translate_problem", "a"): 0}


def test_no_guests_are_no_samples() -> None:
    assert samples() == {}
