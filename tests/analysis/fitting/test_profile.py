"""Profiles against MINOS, and on the tables where they once ended at failed refits."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtrit

from analysis import api
from analysis.fitting.dataset import Dataset, prepare
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from analysis.laws import library
from analysis.table import load

TRUTHS = {
    "training": {"E": 2.662, "X": 522733.3, "x": 0.771, "Y": 25420.1, "y": 0.525},
    "chinchilla": {"E": 1.8172, "A": 477.83, "alpha": 0.34731, "B": 2143.4, "beta": 0.36717},
    "frontier": {"L_inf": 1.8, "A": 900.0, "a": 0.15},
    "test-time": {"L_inf": 2.9, "Z": 0.8, "z": 0.45},
    "test-time-power-floor": {"L_inf": 2.9, "Z": 0.8, "z": 1.2},
}


def simulated(name: str) -> Dataset:
    rng = np.random.default_rng(7)
    n = 60
    columns = {
        "n_params_unrolled": 10 ** rng.uniform(7.0, 9.5, n),
        "n_params": 10 ** rng.uniform(7.0, 9.5, n),
        "n_tokens": 10 ** rng.uniform(8.5, 11.0, n),
        "train_flops": 10 ** rng.uniform(16, 21, n),
        "n_loops": np.tile(np.arange(1.0, 13.0), 5),
    }
    law = library.get(name)
    columns = {c: columns[c] for c in law.columns}
    return Dataset.of(
        columns, law.predict(TRUTHS[name], columns) * np.exp(1e-3 * rng.standard_normal(n))
    )


@pytest.mark.parametrize("name", list(TRUTHS))
def test_intervals_are_those_of_minos(name):
    """MINOS of least squares on the log loss, with the limit of a Student t."""
    minuit = pytest.importorskip("iminuit").Minuit
    law, data = library.get(name), simulated(name)
    found = fit(data, law, FitOptions(loss="log-lsq"))
    logs = np.array([p.kind == "coefficient" for p in law.params])
    dof = len(data) - len(law.params)
    variance = 2 * found.search.objective / dof

    def chi_square(q):
        values = dict(zip(law.names, np.where(logs, np.exp(q), q), strict=True))
        return (
            float(np.sum(np.log(law.predict(values, data.columns) / data.target) ** 2)) / variance
        )

    start = np.array(list(found.params.values()))
    search = minuit(chi_square, np.where(logs, np.log(start), start), name=law.names)
    search.errordef = float(stdtrit(dof, 0.975)) ** 2
    search.strategy, search.tol = 2, 1e-4
    search.migrad()
    search.minos()
    for p, is_log in zip(law.params, logs, strict=True):
        ends = [
            search.values[p.name] + e
            for e in (search.merrors[p.name].lower, search.merrors[p.name].upper)
        ]
        ours = np.array([found.intervals.low[p.name], found.intervals.high[p.name]])
        theirs = np.exp(ends) if is_log else np.array(ends)
        # of the interval's width: our ends are found to 1e-3 of its half
        scale = np.ptp(np.log(theirs) if is_log else theirs)
        gap = (np.log(ours) - ends) if is_log else ours - theirs
        assert np.abs(gap).max() < 3e-3 * scale, (p.name, ours, theirs)


@pytest.mark.parametrize(
    ("source", "law", "name", "inside"),
    [
        ("bundled:nano-isoflop", "training", "Y", 908.0),  # was printed from 1620
        ("bundled:parcae-140m", "iso-depth", "E", 2.602),  # was printed from 2.630
    ],
)
def test_a_held_value_whose_refit_lies_inside_belongs_to_the_interval(source, law, name, inside):
    law = library.get(law)
    found = fit(prepare(load.load(source), law), law, FitOptions(interval="none"))
    profile = found.profile(name)
    low = 0.0 if profile.low is None else profile.low
    assert low <= inside <= profile.high
    within = profile.values[profile.deviance <= profile.limit]
    assert low <= within.min()
    assert within.max() <= profile.high


@pytest.mark.parametrize("decimals", [4, 6, 9])
def test_of_losses_that_are_rounded_alone_the_profile_is_the_parabola(decimals):
    """SciPy's gradient tolerance is absolute: refits of residuals of 1e-6 once stopped where they began."""
    law, truth = library.get("chinchilla"), TRUTHS["chinchilla"]
    n = np.repeat(np.geomspace(3e7, 1e9, 6), 5)
    columns = {"n_params": n, "n_tokens": n * np.tile([5.0, 10, 20, 40, 80], 6)}
    data = Dataset.of(columns, law.predict(truth, columns).round(decimals))
    found = {how: fit(data, law, FitOptions(interval=how)) for how in ("profile", "linear")}
    assert not found["profile"].problems
    for p in law.names:
        ends = [
            (f.intervals.low[p] / f.params[p], f.intervals.high[p] / f.params[p])
            for f in found.values()
        ]
        width = ends[1][1] - ends[1][0]
        assert width < 300 * 10.0**-decimals
        assert ends[0] == pytest.approx(ends[1], abs=0.02 * width)


def test_a_parameter_without_effect_on_any_row_leaves_the_intervals_open():
    """No row tells of b where B is 0; sizes are counted, whose degrees of freedom by b are 0 / 0."""
    n, d = np.repeat(np.geomspace(1e7, 1e9, 6), 5), np.tile(np.geomspace(1e9, 1e10, 5), 6)
    rows = pd.DataFrame({"N": n, "D": d, "err": 9 - 3e-9 * n})
    found = api.fit_source(rows, "err = E + A*N**-a + B*D**-b", n_starts=4)
    assert found.values["B"] == 0.0
    assert "B vanishes" in found.problems[0]
    assert any(p.startswith("the data do not bound b from below or above") for p in found.problems)
