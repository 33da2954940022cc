"""95 % intervals hold the truth about 95 % of the time: the committed study, and a part of it again."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
COMMITTED = BENCHMARKS / "interval_coverage.csv"
# outside 93 to 97 %: 36 runs, or blocks, resampled for five or eight parameters are conservative. The
# first is not the default; the second has 200 sets, which tell 97 from 99 % only just
KNOWN_MISSES = {("training (huber)", "bootstrap", p) for p in ("E", "X", "x")} | {
    ("unified (huber)", "block", p) for p in ("E", "X", "x", "Z", "z", "gamma")
}


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location(
        "coverage_study", BENCHMARKS / "interval_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_intervals_hold_the_truth_as_often_as_they_say():
    """93 to 97 % of 1,000 simulated sets by every default method; what misses that is named."""
    table = pd.read_csv(COMMITTED)
    assert {"recurrence", "test-time", "power", "training (huber)"} <= set(table.law)
    assert (table[table.law != "unified (huber)"].sets == 1000).all()
    outside = table[(table.coverage < 0.93) | (table.coverage > 0.97)]
    found = {(r.law, r.interval, r.parameter) for r in outside.itertuples()}
    assert found == KNOWN_MISSES
    assert (outside.coverage > 0.97).all()  # too wide, never too narrow


@pytest.mark.slow
def test_a_part_of_the_study_repeats_what_is_committed(study):
    again = study.coverage(200, ("recurrence", "test_time", "power"))
    again = again.set_index(["law", "interval", "parameter"])
    committed = pd.read_csv(COMMITTED).set_index(["law", "interval", "parameter"])
    for key, row in again.iterrows():
        # the 200 sets are the first of the committed ones: only chance separates them, and three
        # binomial standard deviations of 200 draws at 95 % are 4.6 %
        assert row.coverage == pytest.approx(committed.loc[key, "coverage"], abs=0.046), key
