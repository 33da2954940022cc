"""What trials that have ended say of an exponent, on losses of a law that is known."""

from dataclasses import asdict

import numpy as np
import pytest

from analysis.design.forecast import Forecast
from analysis.design.optimum import LAW, enclosed, quantities
from parcae_core.errors import UserError
from sweeps.cli.sweep import load_plan
from sweeps.cli.tables.status import _estimate
from sweeps.design.adaptive import planner_of
from sweeps.design.forecasting import (
    apart,
    candidates_at_once,
    estimate_now,
    interval_words,
    size_of,
)
from sweeps.design.spec import parse_spec
from sweeps.store import Store
from tests.support.tiny import spec_dict, tiny_plan, write_spec

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
    elsewhere = estimate_now(measured(plan.trials, 0.002), over=[b * 8 for b in BUDGETS])
    assert elsewhere["value"] != pytest.approx(now["value"], rel=0.01)


@pytest.mark.parametrize("rule", ["ceil(mu/2)", "mu", 2])
def test_which_loops_are_tried_does_not_move_an_exponent(rule):
    plan = tiny_plan(
        budgets_flops=BUDGETS,
        mean_recurrence=[2, 3, 4, 6, 8, 16],
        min_steps=1,
        depth={"mean_backprop_depth": rule},
    )
    size = size_of(plan.trials, "")
    assert size_of([t for t in plan.trials if t.mean_recurrence in (3, 8)], "") == size
    for t in plan.trials:  # and odd numbers lie half a gradient step off its line, no other does
        off = t.cost.train_flops["paper"] / t.n_tokens / size.flops_per_token(t.mean_recurrence) - 1
        odd = rule == "ceil(mu/2)" and t.mean_recurrence % 2
        assert 0.02 < off < 0.2 if odd else off == pytest.approx(0)


def test_ends_are_compared_on_their_own_scale_and_an_open_one_is_said():
    assert apart(Forecast("gamma_D", 0.4, 0.1, 0.7, 0.12, 0.72)) == ""
    shifted = apart(Forecast("gamma_D", 0.4, 0.1, 0.7, -0.1, 0.5))  # the same width
    assert "an end differs by 33% of its width" in shifted
    assert apart(Forecast("mu@1e20", 10.0, 1.0, 100.0, 1.0, 90.0)) == ""  # 2 % of the logarithm
    opened = Forecast("mu@1e20", 10.0, 1.0, 100.0, 1.0, None)
    assert "an end is open" in apart(opened)
    assert "[1, open] to expect (simulated), [1, 100]" in interval_words(asdict(opened))


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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prior": "E=1,X=2,x=3,Y=4,y=5"}, "tiny.yaml: by this prior .* at 0 of 3 budgets"),
        ({"target": "mu@1e40"}, "tiny.yaml: mu@1e40: by this prior no number of loops"),
    ],
)
def test_an_adaptive_sweep_needs_an_optimum_by_its_prior(changes, words):
    keys = {"budgets_flops": BUDGETS[:3], "mean_recurrence": [3, 4, 8], "min_steps": 1}
    given = ",".join(f"{k}={v}" for k, v in TRUTH.items())
    own = {"design": "adaptive", "total_flops": 1e10, "prior": given, "noise": 0.005}
    with pytest.raises(UserError, match=words):
        planner_of(tiny_plan(**keys, **own | changes))


def test_status_takes_an_exponent_over_the_budgets_that_a_list_names(tmp_path):
    trials = [
        {"mean_recurrence": mu, "budget_flops": b} for b in BUDGETS[:2] for mu in (3, 4, 8, 16)
    ]
    keys = {"design": "list", "trials": trials, "budgets_flops": BUDGETS, "min_steps": 1}
    path = write_spec(tmp_path, **keys, mean_recurrence=None)
    plan, store = load_plan(path), Store(tmp_path, "tiny")
    store.write_plan(plan, path)
    ended = measured(plan.trials, 0.002)
    shown = _estimate([], ended, store)
    assert shown["value"] == estimate_now(ended, over=BUDGETS)["value"]
    assert shown["value"] != pytest.approx(estimate_now(ended)["value"], rel=0.01)
