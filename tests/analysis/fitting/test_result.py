import json

import pytest

from analysis.errors import InputError
from analysis.fitting.result import Dropped, FitResult, Param


def make(problems=(), value=0.5, **extra):
    fields = {
        "law": "power",
        "formula": "y = k x^gamma",
        "source": "points.csv",
        "params": (
            Param(name="k", value=3.1, ci_low=1.0, ci_high=float("inf"), unit="tokens"),
            Param(name="gamma", value=value, ci_low=0.4, ci_high=0.6, at_bound=True),
        ),
        "confidence": 0.95,
        "interval_method": "Student t",
        "n_obs": 4,
        "dropped": (Dropped(reason="the run diverged", n_rows=2),),
        "objective": 0.01,
        "objective_name": "sum of squares",
        "n_starts": 20,
        "n_starts_at_best": 1,
        "data_sha256": "0" * 64,
        "notes": ("by hand",),
        "problems": problems,
    }
    return FitResult(**(fields | extra))


def test_report_is_loud_when_invalid():
    text = str(make(problems=("only 1 of 20 starts reached the best objective",)))
    assert "NOT VALID" in text
    assert "! only 1 of 20 starts" in text
    assert "AT BOUND" in text
    assert "left out: 2 rows, the run diverged" in text
    assert "NOT VALID" not in str(make())


def test_round_trips_through_json_with_infinite_bounds():
    result = make(problems=("x",), tables={"optima": [{"budget_flops": 1e18, "optimum": None}]})
    assert FitResult.from_json(result.to_json()) == result
    data = json.loads(result.to_json())
    assert data["valid"] is False
    assert data["params"][0]["ci_high"] == "inf"
    with pytest.raises(InputError, match="not a fit result"):
        FitResult.from_json("{}")


def test_a_missing_number_needs_a_sentence():
    with pytest.raises(AssertionError, match="gamma"):
        make(value=None)
    assert "no estimate" in str(make(value=None, problems=("too few budgets",)))
    with pytest.raises(AssertionError, match="NaN"):
        make(value=float("nan"), problems=("x",))


def test_unknown_parameter_lists_known_ones():
    assert make()["gamma"].value == 0.5
    with pytest.raises(KeyError, match="it has k, gamma"):
        make()["alpha"]


def test_summary_is_one_line_with_the_exponent_and_the_verdict():
    assert make().summary() == "power [points.csv]: gamma 0.5 [0.4, 0.6]"
    assert make(problems=("too wide",)).summary().endswith("NOT VALID: too wide")
