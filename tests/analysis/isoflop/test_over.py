"""IsoFLOP over any axis."""

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.errors import InputError


@pytest.fixture
def chinchilla(tmp_path):
    """Six budgets of a known law without noise: N* = G (C/6)^(beta/(alpha+beta))."""
    rows = []
    for c in np.geomspace(1e18, 1e21, 6):
        best = (0.34 * 400 / (0.28 * 400)) ** (1 / 0.62) * (c / 6) ** (0.28 / 0.62)
        for n in best * np.geomspace(1 / 3, 3, 7):
            d = c / (6 * n)
            rows.append(
                {
                    "C": c,
                    "N": n,
                    "D": d,
                    "loss": 1.7 + 400 * n**-0.34 + 400 * d**-0.28,
                    "lr": 1e-3 * n / best,
                }
            )
    path = tmp_path / "isoflop.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_over_parameters_the_exponents_are_those_of_the_law(chinchilla):
    result = api.fit_source(chinchilla, "isoflop", over="N")
    assert [p.name for p in result.params] == ["gamma_N", "k_N", "gamma_D", "k_D"]
    assert result["gamma_N"].value == pytest.approx(0.28 / 0.62, abs=0.005)
    assert result["gamma_D"].value == pytest.approx(0.34 / 0.62, abs=0.005)
    assert result.valid
    assert "log N" in result.objective_name


def test_over_a_column_of_the_file(chinchilla):
    result = api.fit_source(chinchilla, "isoflop", over="lr")
    assert result["gamma_lr"].value == pytest.approx(0.0, abs=0.01)


def test_optimal_reads_the_power_laws(chinchilla):
    from analysis.optima import optimal

    answer = optimal(api.load(chinchilla), 1e22, "isoflop", over="N")
    best = (0.34 / 0.28) ** (1 / 0.62) * (1e22 / 6) ** (0.28 / 0.62)
    assert [v.name for v in answer.values] == ["N*", "D*"]
    assert answer.values[0].value == pytest.approx(best, rel=0.1)
    assert not answer.inside


def test_an_axis_that_does_not_vary_is_refused(chinchilla):
    frame = pd.read_csv(chinchilla).assign(batch=256)
    frame.to_csv(chinchilla, index=False)
    with pytest.raises(InputError, match="batch is the same in every row"):
        api.fit_source(chinchilla, "isoflop", over="batch")
    with pytest.raises(InputError, match="--over N: only --law isoflop"):
        api.fit_source(chinchilla, "chinchilla", over="N")


def test_the_axis_belongs_to_the_setting_and_seeds_are_averaged_within_it():
    rng = np.random.default_rng(0)
    rows = []
    for c in (1e18, 1e19, 1e20, 1e21):
        best = 1e-3 * (c / 1e18) ** -0.1
        for f in (0.25, 0.5, 1, 2, 4):
            for seed in (0, 1):
                loss = 2 + (c / 1e18) ** -0.05 + 0.05 * np.log(f) ** 2
                loss += 1e-3 * rng.standard_normal()
                rows.append((c, c / 6e8, 1e8, best * f, seed, loss))
    frame = pd.DataFrame(rows, columns=["budget", "D", "N", "lr", "seed", "loss"])
    for given in (frame, frame[["budget", "lr", "loss"]][frame.seed == 0]):
        result = api.fit_source(given, "isoflop", over="lr")
        assert result.problems == ()
        assert result["gamma_lr"].value == pytest.approx(-0.1, abs=0.005)
        assert result.n_obs == 20


def test_a_column_of_a_formula_belongs_to_the_setting():
    rng = np.random.default_rng(0)
    rows = [(w, s, 2 + 30 * w**-0.7) for w in (64, 128, 256, 512, 1024) for s in (0, 1, 2)]
    frame = pd.DataFrame(rows, columns=["width", "seed", "loss"])
    frame["loss"] += 3e-3 * rng.standard_normal(len(frame))
    result = api.fit_source(frame, "E + A*width**-a", interval="none", n_starts=2)
    assert result.problems == ()
    assert any("seeds are replicas" in n for n in result.notes)
