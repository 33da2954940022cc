"""95 % intervals hold the truth about 95 % of the time: the committed study, and a part of it again."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COMMITTED = BENCHMARKS / "interval_coverage.csv"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location(
        "coverage_study", BENCHMARKS / "interval_coverage.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_part_of_the_study_repeats_what_is_committed(study):
    cases = (study.recurrence, study.test_time, study.power)
    again = study.coverage(200, cases).set_index(["law", "interval", "parameter"])
    committed = pd.read_csv(COMMITTED).set_index(["law", "interval", "parameter"])
    for key, row in again.iterrows():
        # the 200 sets are the first of the committed ones: only chance separates them, and three
        # binomial standard deviations of 200 draws at 95 % are 4.6 %
        assert row.coverage == pytest.approx(committed.loc[key, "coverage"], abs=0.046), key
