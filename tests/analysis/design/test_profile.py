"""The profile interval of a quantity: inside it lies what a refit held there is not much worse for."""

import numpy as np
import pytest

from analysis.design.optimum import LAW, Size, log_optimum, quantities
from analysis.design.priors import PUBLISHED
from analysis.design.profile import Profile, profiled
from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions

TRUTH = PUBLISHED["paper:140m"]
SIZE = Size(n_params=144e6, n_params_core=14e6, flops_at_zero=3.963e8, flops_per_loop=8.179e7)
BUDGETS = np.array([1e18, 2e18, 4e18, 8e18, 16e18, 64e18])
OVER = BUDGETS[1:]  # whose optimum lies at one loop or more
LIMIT = 4.0
NOISE = 2e-3


def grid(seed):
    """The paper's 36 runs with 0.2 % noise, fitted."""
    columns = SIZE.columns(np.tile([2.0, 4, 6, 8, 10, 12], 6), np.repeat(BUDGETS, 6))
    noise = NOISE * np.random.default_rng(seed).standard_normal(36)
    data = Dataset.of(columns, LAW.predict(TRUTH, columns) * np.exp(noise))
    return fit(data, LAW, FitOptions(loss="log-lsq", interval="none", n_starts=4))


@pytest.mark.parametrize("seed", range(3))
def test_it_holds_the_truth_where_a_refit_held_there_is_as_good(seed):
    fitted = grid(seed)
    (truth,) = quantities(("gamma_mu",), TRUTH, SIZE, OVER)
    low, high = profiled(
        fitted.objective, fitted.theta, NOISE, "gamma_mu", SIZE, OVER, LIMIT, [seed]
    )
    profile = Profile(
        fitted.objective.columns, np.log(fitted.dataset.target), NOISE, "gamma_mu", SIZE, OVER
    )
    held = profile._held_at(truth.value, 0.01, profile.inward(TRUTH))
    rise = sum(
        sign * np.square(profile(p)[0]).sum()
        for sign, p in ((1, held), (-1, profile.inward(fitted.params)))
    )
    assert (low <= truth.value <= high) == (rise <= LIMIT)
    (now,) = quantities(("gamma_mu",), fitted.params, SIZE, OVER)
    assert low < now.value < high


def test_slopes_are_those_of_differences():
    fitted = grid(0)
    profile = Profile(
        fitted.objective.columns, np.log(fitted.dataset.target), NOISE, "gamma_mu", SIZE, OVER
    )
    at = profile.inward(TRUTH)
    _, slopes, value, pull = profile(at)
    for i in range(len(at)):
        step = np.zeros(len(at))
        step[i] = 1e-6
        up, down = profile(at + step), profile(at - step)
        assert (up[0] - down[0]) / 2e-6 == pytest.approx(slopes[:, i], rel=1e-4, abs=1e-3)
        assert (up[2] - down[2]) / 2e-6 == pytest.approx(pull[i], rel=1e-3, abs=1e-4)
    assert value == pytest.approx(
        np.polyfit(np.log(OVER), log_optimum(TRUTH, SIZE, OVER)[0], 1)[0], abs=1e-9
    )
