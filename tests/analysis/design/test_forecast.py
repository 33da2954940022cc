"""Intervals before a sweep: exact slopes, Fisher information against simulation, bad priors."""

import numpy as np
import pytest
from scipy.special import stdtrit

from analysis.design import priors
from analysis.design.forecast import LAW, Runs, forecast, huber_variance
from analysis.design.optimum import Size, enclosed, log_optimum, parse_target, quantities
from analysis.errors import InputError

# the paper's 140M model by Appendix D
SIZE = Size(
    n_params=144_323_136, n_params_core=14_159_040, flops_at_zero=3.963e8, flops_per_loop=8.179e7
)
BUDGETS = np.array([1e18, 2e18, 4e18, 8e18, 16e18, 64e18])
NAMES = ("gamma_mu", "gamma_D", "mu@1e20", "loss@1e20")


def runs(depths=(2, 4, 8, 16, 32, 64)) -> Runs:
    budget, mu = np.repeat(BUDGETS, len(depths)), np.tile(np.array(depths, float), len(BUDGETS))
    return Runs(
        size=SIZE, mean_recurrence=mu, budget_flops=budget, columns=SIZE.columns(mu, budget)
    )


def test_the_optimum_is_where_the_law_is_lowest():
    values = priors.PUBLISHED["paper:140m"]
    u, _ = log_optimum(values, SIZE, np.array([8e18]))
    grid = np.linspace(2, 4, 20001)
    lowest = grid[LAW.predict(values, SIZE.columns(np.exp(grid), 8e18)).argmin()]
    assert u[0] == pytest.approx(lowest, abs=2e-4)


@pytest.mark.parametrize("name", LAW.names)
def test_slopes_of_the_quantities_are_exact(name):
    values = dict(priors.PUBLISHED["paper:140m"])
    budgets = enclosed(values, SIZE, BUDGETS)
    i, step = LAW.names.index(name), 1e-4 * values[name]
    up, down = (
        quantities(NAMES, values | {name: values[name] + s}, SIZE, budgets) for s in (step, -step)
    )
    for a, b, q in zip(up, down, quantities(NAMES, values, SIZE, budgets), strict=True):
        assert (a.value - b.value) / (2 * step) == pytest.approx(q.slopes[i], rel=1e-3, abs=1e-30)


@pytest.mark.parametrize("noise", [5e-4, 2e-3])
def test_fisher_information_and_simulation_agree_within_15_percent(noise):
    for f in forecast(runs(), priors.read("paper:140m", noise), NAMES):
        ratio = (f.simulated_high - f.simulated_low) / (f.high - f.low)
        assert 0.85 < ratio < 1.15, f


def test_more_runs_narrow_the_interval_as_their_root():
    prior = priors.read("paper:140m", 1e-3)
    once, twice = (forecast(runs(d), prior, ("gamma_mu",), simulations=0)[0] for d in DEPTHS)
    ratio = (twice.high - twice.low) / (once.high - once.low)
    assert ratio == pytest.approx(2**-0.5 * stdtrit(67, 0.975) / stdtrit(31, 0.975), rel=1e-6)


DEPTHS = ((2, 4, 8, 16, 32, 64), (2, 4, 8, 16, 32, 64) * 2)


def test_what_huber_costs_on_gaussian_noise():
    assert huber_variance(1.345) == pytest.approx(1 / 0.95, rel=1e-3)  # Huber's own tuning: 95 %
    assert huber_variance(50.0) == pytest.approx(1.0)
    assert huber_variance(1e-3) == pytest.approx(np.pi / 2, rel=1e-3)  # the median's


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (" ", "--prior is empty"),
        ("E=2,E=3,X=5e5,x=0.77,Y=2.5e4,y=0.53", "E is given twice"),
        ("paper:150m", "did you mean 'paper:140m'?"),
        ("E=2.6,X=5e5", "Y is missing"),
        ("E=2.6,X=5e5,x=0.7,Y=2e4,y=0.5,z=1", "z is no parameter"),
        ("E=2.6,X=5e5,x=-1,Y=2e4,y=0.5", "x is -1"),
        ("nothing.csv", "no such file"),
        ("bundled:parcae-150m", "no such data"),
    ],
)
def test_a_prior_that_is_none_is_refused(prior, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        priors.read(prior)


@pytest.mark.parametrize("target", ["gamma", "mu", "mu@", "mu@-1", "phi@1e20"])
def test_a_target_that_the_law_does_not_have_is_refused(target):
    with pytest.raises(InputError, match="gamma_mu, gamma_D, mu@C or loss@C"):
        parse_target(target)


def test_noise_of_replicas_comes_from_the_records():
    prior = priors.read("bundled:state-reveals")
    assert prior.noise_source == "of replicas (56 degrees of freedom)"
    assert prior.noise == pytest.approx(0.0171, abs=1e-4)


def test_an_end_beyond_what_is_searched_is_open():
    (f,) = forecast(runs((2, 4, 6, 8, 10, 12)), priors.read("paper:140m"), ("mu@1e20",))
    assert (f.simulated_high, round(f.simulated_low)) == (None, 26)
