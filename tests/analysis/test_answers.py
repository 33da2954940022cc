"""What `predict`, `optimal`, `loops` and `judge` answer: the setting that was asked for, or a refusal."""

import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import api, loops, optima, prediction
from analysis.choices import Choices
from analysis.errors import InputError
from analysis.fitting import intervals
from analysis.fitting.fit import fit_table
from analysis.laws import library
from analysis.table.load import load
from sweeps.cli.app import build_app

PAPER = "bundled:parcae-140m"
QUICK = {"interval": "none", "n_starts": 2}
HERE = {"mean_recurrence": 8.0, "n_tokens": 1.12e10}


@pytest.fixture
def verb():
    app = build_app("laws", "figures")
    return lambda *words: CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def paper():
    return load(PAPER)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"n_loops": 1.0}, "T = 1: law 'training' is of losses at T = mu, here 8"),
        ({"n_params": 1e9}, "N = 1e+09: the runs all have N = 1.44323e+08"),
        ({"train_flops": 1e19}, "C = 1e+19: law 'training' does not depend on it; leave it out"),
        ({"n_params_unrolled": 1e8}, "mu = 8: N_mu = 1e+08 is of another mu here"),
        ({"n_tokens": float("nan")}, "D is nan; tokens above 0 are needed"),
        ({"mean_recurrence": -1.0}, "mu is -1; loops above 0 are needed"),
    ],
)
def test_a_setting_that_the_law_does_not_know_is_refused(paper, extra, words):
    with pytest.raises(InputError, match=re.escape(words)):
        prediction.predict(paper, "training", HERE | extra, **QUICK)


def test_a_setting_may_say_what_all_runs_share(paper):
    alone = prediction.predict(paper, "training", HERE, n_resamples=5, **QUICK)
    more = HERE | {"n_loops": 8.0, "n_params": 144_323_136.0}
    same = prediction.predict(paper, "training", more, n_resamples=5, **QUICK)
    assert same.values == alone.values
    assert alone.values[0].value == pytest.approx(2.9662, abs=1e-4)


def test_few_runs_move_the_ends_of_an_answer_outward():
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(8), 4)
    n, d = np.repeat(np.geomspace(1e7, 3e9, 8), 4), np.tile(np.geomspace(1e9, 1e11, 4), 8)
    loss = (1.8 + 420 * n**-0.345 + 1500 * d**-0.36) * np.exp(0.005 * rng.standard_normal(8)[runs])
    frame = pd.DataFrame({"run": runs.astype(str), "N": n, "D": d, "loss": loss})
    fitted = fit_table(load(frame), library.get("chinchilla"), loss="log-lsq", **QUICK)
    assert intervals.expanded(8, 0.95) == pytest.approx(0.574, abs=1e-3)
    draws = np.linspace(0, 1, 1001)
    assert prediction.ends(fitted, draws) == pytest.approx((0.00574, 0.99426), abs=1e-4)


def test_an_optimum_that_resamples_put_beyond_the_grid_is_open(paper, monkeypatch):
    few = {"n_resamples": 20, **QUICK}
    wide = {v.name: v for v in optima.optimal(paper, 1e23, "training", **few).values}
    assert wide["mu*"].value == pytest.approx(100, rel=0.01)
    assert 128 < wide["mu*"].ci_high < 300
    monkeypatch.setattr(optima, "MU_GRID", np.geomspace(1.0, 110.0, 1200))
    found = {v.name: v for v in optima.optimal(paper, 1e23, "training", **few).values}
    assert found["mu*"].ci_high is None
    assert found["mu*"].ci_low == pytest.approx(wide["mu*"].ci_low, rel=0.03)
    assert found["D*"].ci_low == 0.0
    assert found["loss"].ci_low is None
    with pytest.raises(InputError, match="still falls at mu = 110, so no optimum follows"):
        optima.optimal(paper, 1e24, "training", **few)


@pytest.mark.parametrize("name", ["budget", "C"])
def test_no_optimum_along_6_n_d_of_flops_counted_otherwise(name):
    n, d = np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
    n, d = n.ravel(), d.ravel()
    loss = 1.8 + 420 * n**-0.345 + 1500 * d**-0.36
    table = load(pd.DataFrame({"N": n, "D": d, "loss": loss, name: 10 * n * d}))
    with pytest.raises(InputError, match=f"{name} is 1.67 times 6 N D"):
        optima.optimal(table, 1e20, "chinchilla", **QUICK)


def test_held_and_tied_parameters_reach_every_answer(paper):
    held = library.get("training").tying(x="y").fixing(x=0.6)
    assert held.whole({"E": 2.0}) == {"E": 2.0, "x": 0.6, "y": 0.6}
    unified = library.get("unified").tying(x="y").fixing(gamma=1.0, Z=2.0)
    nano = load("bundled:nano-isoflop", where=("mean_recurrence>1", "n_loops<5"))
    at = {"mean_recurrence": 6.0, "n_tokens": 4e6}
    found = loops.loops_to_reach(nano, 1.6, at, unified, n_resamples=2, n_starts=1, interval="none")
    assert "n=2" in found.interval_method
    total, core = prediction.sizes(nano)
    there = {**at, "n_loops": found.values[0].value, "n_params_unrolled": total + 5 * core}
    values = {p.name: p.value for p in found.fit.params}
    loss = unified.predict(values, {k: np.array([v]) for k, v in there.items()})
    assert loss == pytest.approx(1.6, abs=1e-6)
    with pytest.raises(InputError, match="T = 4: the loops are what is asked for"):
        loops.loops_to_reach(nano, 1.6, at | {"n_loops": 4.0}, unified)


@pytest.mark.slow
def test_judge_takes_a_law_with_a_parameter_held(verb):
    done = verb("judge", PAPER, "--law", "training", "--fix", "E=2.6", "--starts", 1)
    assert done.exit_code == 0, done.exception
    assert "bias of the parabola" in done.stdout


def test_three_parameters_can_be_tied_in_any_order():
    law = api.load(PAPER)
    text = "E + A*N_mu**-a + B*D**-b + C2*mu**-c"
    for tie in ("a=b,b=c", "a=b,c=b", "a=b,b=a"):
        form = Choices.of(tie=tie).law(text, law)
        assert len(form.params) == (6 if tie == "a=b,b=a" else 5)


def test_options_that_a_law_does_not_take_are_refused(verb):
    for words in (
        ("fit", PAPER, "--law", "recurrence", "--loss", "lsq"),
        ("optimal", PAPER, "--budget", "1e19", "--resamples", 10),
        ("judge", PAPER, "--law", "recurrence", "--seed", 1),
        ("loops", "bundled:nano-isoflop", "--loss", 1.6, "--resamples", 10),
    ):
        done = verb(*words)
        assert isinstance(done.exception, InputError), words
        assert f"{words[-2]} {words[-1]}: law " in str(done.exception)
    assert verb("fit", PAPER, "--law", "recurrence", "--confidence", 0.9).exit_code == 0


def test_predict_takes_a_law_of_the_loss_and_columns_of_the_file(verb, tmp_path):
    done = verb("predict", PAPER, "--at", "mu=8,D=11.2e9", "--resamples", 5, "--interval", "none")
    assert "val_loss = 2.966" in done.stdout
    depth = np.array([2.0, 3, 4, 6, 8, 12, 16, 24])
    frame = pd.DataFrame({"depth": depth, "loss": 2.0 + 3 * depth**-0.7})
    path = tmp_path / "depth.csv"
    frame.to_csv(path, index=False)
    few = {"law": "E + A*depth**-a", "n_resamples": 5, "interval": "none"}
    for at in ("depth=12", {"depth": 12.0}):
        answer = api.predict_source(path, at=at, **few)
        assert answer.values[0].value == pytest.approx(2.0 + 3 * 12**-0.7, abs=1e-6)
    with pytest.raises(InputError, match="did you mean 'depth'"):
        api.predict_source(path, at="dept=12", **few)


def test_an_axis_without_a_law_is_the_one_of_minima():
    budgets, rates = np.repeat([1e18, 1e19, 1e20], 5), np.tile(np.geomspace(0.25e-3, 4e-3, 5), 3)
    best = 1e-3 * (budgets / 1e18) ** -0.1
    loss = 5 * budgets**-0.012 + 0.05 * np.log(rates / best) ** 2
    frame = pd.DataFrame({"budget": budgets, "lr": rates, "loss": loss})
    result = api.fit_source(frame, over="lr")
    assert result["gamma_lr"].value == pytest.approx(-0.1, abs=1e-6)
    assert api.study_source(frame, over="lr").names == ("isoflop",)
