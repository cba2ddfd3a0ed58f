"""What is translated for guests, as Prometheus metrics.

Names and units follow Prometheus' own conventions: a prefix of the application, base units,
``_total`` on what only grows (prometheus.io/docs/practices/naming).  Sites and processes are left
out: a guest decides how many there are, and each would be a time series for ever.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from isthmus.migration.arming import Report
from isthmus.translate.outside import TranslatorStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS: tuple[tuple[str, str, Callable[[TranslatorStatus], float]], ...] = (
    ("isthmus_translate_traps", "Stops of the guest at its #UD handler.", lambda s: s.traps),
    ("isthmus_undefined_passed", "#UDs that were the guest's own affair.", lambda s: s.passed),
    ("isthmus_translate_faulted", "Instructions that raised an exception of their own.",
     lambda s: s.faulted),
    ("isthmus_translate_spurious", "Stops of the guest without a #UD.", lambda s: s.spurious),
    ("isthmus_translate_busy_seconds", "Time for which the guest stood in traps.",
     lambda s: s.busy_s),
)  # fmt: skip
_BY_NAME: tuple[tuple[str, str, str, Callable[[TranslatorStatus], dict[str, int]]], ...] = (
    ("isthmus_translated", "Instructions executed for the guest.", "instruction",
     lambda s: s.translated),
    ("isthmus_refused", "Instructions that no placement executes: the guest got its #UD.", "family",
     lambda s: s.refused),
    ("isthmus_lacking", "Instructions that need state out of reach: the guest got its #UD.",
     "instruction", lambda s: s.lacking),
)  # fmt: skip
_GAUGES: tuple[tuple[str, str, Callable[[TranslatorStatus], float]], ...] = (
    ("isthmus_translate_busy_ratio", "Share of a vCPU that translation took lately, 0 to 1.",
     lambda s: s.busy_share),
    ("isthmus_translate_start_time_seconds", "When the translator was started, Unix time.",
     lambda s: s.since),
)  # fmt: skip


def exposition(reports: Sequence[Report]) -> bytes:
    """The text format, version 0.0.4, of these reports."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReportCollector(lambda: reports))
    return generate_latest(registry)


class ReportCollector(Collector):
    """Asks for the reports anew at each scrape."""

    def __init__(self, reports: Callable[[], Sequence[Report]]) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        """All metrics; guests for which nothing is translated outside are left out."""
        reports = [report for report in self._reports() if report.translation is not None]
        up = GaugeMetricFamily(
            "isthmus_translate_up",
            "Whether the guest's translator answers (1) or is missing (0).",
            labels=["guest", "host", "placement"],
        )
        bound = GaugeMetricFamily(
            "isthmus_translate_warn_ratio",
            "Share of a vCPU above which the cost is warned of, 0 to 1.",
            labels=["guest"],
        )
        problem = GaugeMetricFamily(
            "isthmus_translate_problem",
            "Whether something is wrong (1): the guest may stand still.",
            labels=["guest"],
        )
        for report in reports:
            assert report.translation is not None
            problem.add_metric([report.guest], float(bool(report.problem)))
            # Inside, the counters are the guest's own: nothing here could answer for it.
            if report.translation.placement == "outside":
                place = [report.guest, report.host, report.translation.placement.value]
                up.add_metric(place, float(report.status is not None))
                bound.add_metric([report.guest], report.translation.warn_share)
        yield from (up, bound, problem)
        known = [(r.guest, r.status) for r in reports if r.status is not None]
        for name, says, value in _COUNTERS:
            counter = CounterMetricFamily(name, says, labels=["guest"])
            for guest, status in known:
                counter.add_metric([guest], value(status))
            yield counter
        for name, says, label, values in _BY_NAME:
            counter = CounterMetricFamily(name, says, labels=["guest", label])
            for guest, status in known:
                for which, count in sorted(values(status).items()):
                    counter.add_metric([guest, which], count)
            yield counter
        for name, says, value in _GAUGES:
            gauge = GaugeMetricFamily(name, says, labels=["guest"])
            for guest, status in known:
                gauge.add_metric([guest], value(status))
            yield gauge
