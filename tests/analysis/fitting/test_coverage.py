"""95 % intervals hold the truth about 95 % of the time: the committed study, and a part of it again."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
COMMITTED = BENCHMARKS / "interval_coverage.csv"
# outside 93 to 97 % as far as the sets drawn tell: none of the defaults
KNOWN_MISSES: set[tuple[str, str, str]] = set()


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location(
        "coverage_study", BENCHMARKS / "interval_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_committed_intervals_hold_the_truth_as_often_as_they_say():
    """93 to 97 % by every default method, within the Monte Carlo interval of the sets that were drawn."""
    table = pd.read_csv(COMMITTED)
    assert {"recurrence", "test-time", "power", "training (huber)", "unified (huber)"} <= set(
        table.law
    )
    outside = table[(table.high < 0.93) | (table.low > 0.97)]
    assert {(r.law, r.interval, r.parameter) for r in outside.itertuples()} == KNOWN_MISSES


@pytest.mark.slow
def test_a_part_of_the_study_repeats_what_is_committed(study):
    again = study.coverage(200, ("recurrence", "test_time", "power"))
    again = again.set_index(["law", "interval", "parameter"])
    committed = pd.read_csv(COMMITTED).set_index(["law", "interval", "parameter"])
    for key, row in again.iterrows():
        # the 200 sets are the first of the committed ones: only chance separates them, and three
        # binomial standard deviations of 200 draws at 95 % are 4.6 %
        assert row.coverage == pytest.approx(committed.loc[key, "coverage"], abs=0.046), key
