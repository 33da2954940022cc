"""What trials that have ended say of an exponent, on losses of a law that is known."""

import numpy as np
import pytest

from analysis.design.optimum import LAW, enclosed, quantities
from sweeps.design.forecasting import candidates_at_once, estimate_now, size_of
from sweeps.design.spec import parse_spec
from tests.support.tiny import spec_dict, tiny_plan

BUDGETS = [4e8, 8e8, 1.6e9, 3.2e9]
TRUTH = {"E": 1.0, "X": 330.0, "x": 0.5, "Y": 55.0, "y": 0.5}


def measured(trials, noise: float) -> list:
    """(trial, loss) by the law, with noise of one run."""
    rng = np.random.default_rng(3)
    columns = {
        "n_params_unrolled": np.array([float(t.cost.n_params_unrolled) for t in trials]),
        "n_tokens": np.array([float(t.n_tokens) for t in trials]),
    }
    losses = LAW.predict(TRUTH, columns) * np.exp(noise * rng.standard_normal(len(trials)))
    return list(zip(trials, losses.tolist(), strict=True))


@pytest.fixture(scope="module")
def plan():
    return tiny_plan(budgets_flops=BUDGETS, mean_recurrence=[1, 2, 3, 4, 6, 8, 16], min_steps=1)


def looped(plan) -> list:
    return [t for t in plan.trials if t.mean_recurrence > 2]


def test_the_interval_of_a_grid_holds_the_truth_and_rests_on_looped_runs(plan):
    now = estimate_now(measured(plan.trials, 0.002))
    trials = looped(plan)  # at mu = 2 one loop alone has a gradient, at 1 there is none
    assert now["n_runs"] == len(trials)
    assert now["flops"] == sum(t.budget_flops for t in trials)
    size = size_of(trials, "")
    over = enclosed(TRUTH, size, BUDGETS)
    [gamma] = quantities(("gamma_mu",), TRUTH, size, over)
    assert now["low"] < gamma.value < now["high"]
    assert 0.01 < now["high"] - now["low"] < 1


def test_it_narrows_as_runs_end_and_a_few_say_nothing(plan):
    rows = measured(looped(plan), 0.002)
    assert estimate_now(rows[:6]) is None
    early, late = estimate_now(rows[:12]), estimate_now(rows)
    assert early["n_runs"] == 12
    assert late["high"] - late["low"] < early["high"] - early["low"]


def test_trials_of_two_laws_have_no_common_one(plan):
    other = tiny_plan(
        budgets_flops=BUDGETS, mean_recurrence=[4, 8], min_steps=1, optim={"lr": 1e-3}
    )
    assert estimate_now(measured([*looped(plan), *other.trials], 0.002)) is None


def test_a_prior_that_is_gone_leaves_no_reference():
    keys = {
        "design": "adaptive",
        "budgets_flops": BUDGETS[:3],
        "mean_recurrence": [3, 4, 8],
        "total_flops": 1e10,
        "min_steps": 1,
    }
    given = ",".join(f"{k}={v}" for k, v in TRUTH.items())
    plan = tiny_plan(**keys, prior=given, noise=0.005)
    flops, half = candidates_at_once(plan.trials, plan.spec)
    assert flops == 3 * sum(BUDGETS[:3])
    quiet = parse_spec(spec_dict(**keys, prior=given, noise=0.0025), "tiny.yaml")
    assert candidates_at_once(plan.trials, quiet)[1] < half
    gone = parse_spec(spec_dict(**keys, prior="runs/gone"), "tiny.yaml")
    assert candidates_at_once(plan.trials, gone) is None
