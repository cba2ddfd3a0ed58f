"""The translator's counters: a guest with any number of sites cannot make them grow."""

from isthmus.translate.outside.status import SHOWN, Busiest, Tally


def test_few_keys_are_counted_exactly():
    counts = Busiest()
    for key in (0x10, 0x20, 0x10):
        counts.add(key, 2)
    assert counts.shown() == {"0x10": 4, "0x20": 2}


def test_many_keys_stay_bounded_and_the_busy_ones_stay():
    counts = Busiest(room=64)
    for key in range(10_000):
        counts.add(key, 1)
        counts.add(1 << 40, 1)
    assert len(counts) <= 64
    assert counts.shown(1) == {hex(1 << 40): 10_000}
    assert len(Busiest().shown()) <= SHOWN


def test_a_run_counts_for_its_site_and_process():
    tally = Tally()
    tally.done(["EXTRQ", "EXTRQ", "RDTSCP"], 0x401000, 0x5000)
    tally.spent(3_000_000)
    assert dict(tally.translated) == {"EXTRQ": 2, "RDTSCP": 1}
    assert tally.sites.shown() == {"0x401000": 3}
    assert tally.processes.shown() == {"0x5000": 3}
    assert tally.us_per_instruction == 1000
    rate, share = tally.recent()
    assert rate > 0
    assert 0 < share <= 1


def test_nothing_done_costs_nothing():
    tally = Tally()
    assert tally.recent() == (0.0, 0.0)
    assert tally.us_per_instruction == 0.0
