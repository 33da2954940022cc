import numpy as np
import pytest

from analysis.fitting import search
from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from analysis.laws import library

TRUTH = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}


def test_many_rows_start_on_a_sample_and_end_at_the_optimum_of_all(monkeypatch):
    rng, law = np.random.default_rng(0), library.get("chinchilla")
    columns = {
        "n_params": 10 ** rng.uniform(7, 10, 4000),
        "n_tokens": 10 ** rng.uniform(8, 12, 4000),
    }
    data = Dataset.of(
        columns, law.predict(TRUTH, columns) * np.exp(0.01 * rng.standard_normal(4000))
    )
    whole = fit(data, law, FitOptions(interval="linear", n_starts=4))
    monkeypatch.setattr(search, "MANY", 2000)
    monkeypatch.setattr(search, "SAMPLE", 500)
    found = fit(data, law, FitOptions(n_starts=4))
    assert found.search.objective == pytest.approx(whole.search.objective, rel=1e-9)
    assert found.params == pytest.approx(whole.params, rel=1e-4)
    assert found.result.interval_method == "linearised law, Student t"
    assert any("a sample of 500 rows" in n for n in found.result.notes)
    low, high = found.result["alpha"].ci_low, found.result["alpha"].ci_high
    assert low < 0.35 < high
    assert high - low < 0.02
