"""Rows far off a fit are named, and the filter that the sentence gives makes the fit valid."""

import re

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.errors import InputError

LAW = {"E": 1.8, "A": 420.0, "alpha": 0.345, "B": 1500.0, "beta": 0.36}


@pytest.fixture
def runs():
    """30 runs of a Chinchilla law with 0.3 % noise."""
    rng = np.random.default_rng(4)
    n, d = 10 ** rng.uniform(7.5, 9.5, 30), 10 ** rng.uniform(9, 11.5, 30)
    loss = LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * d ** -LAW["beta"]
    loss *= np.exp(3e-3 * rng.standard_normal(30))
    return pd.DataFrame({"run": [f"r{i}" for i in range(30)], "N": n, "D": d, "loss": loss})


def fitted(frame, **options):
    return api.fit_source(frame, "chinchilla", **{"interval": "none", "n_starts": 4} | options)


def conditions(sentence):
    return tuple(re.findall(r'--where "([^"]*)"', sentence))


@pytest.mark.parametrize("loss", ["huber", "log-lsq", "lsq"])
@pytest.mark.parametrize("named", [True, False])
def test_a_run_far_off_is_named_and_the_advice_leaves_it_out(runs, loss, named):
    assert fitted(runs, loss=loss).valid
    wrong = runs.assign(loss=runs.loss.where(runs.run != "r7", 9.2))
    wrong = wrong if named else wrong.drop(columns="run")
    # least squares on the loss follows it until nothing else is left of the law
    [sentence] = [p for p in fitted(wrong, loss=loss).problems if "where the law gives" in p]
    assert sentence.startswith(f"{'run r7' if named else 'row 8'} (loss 9.2 where the law gives ")
    assert conditions(sentence) == (("run!=r7",) if named else ("val_loss!=9.2",))
    mended = fitted(wrong, loss=loss, where=conditions(sentence))
    assert mended.valid
    assert mended.n_obs == 29


def test_several_are_named_worst_first_and_all_can_be_left_out(runs):
    shift = runs.run.map({"r3": 1.5, "r12": 0.5}).fillna(1.0)
    [sentence] = fitted(runs.assign(loss=runs.loss * shift)).problems
    assert conditions(sentence) == ("run!=r12", "run!=r3")
    assert fitted(runs.assign(loss=runs.loss * shift), where=conditions(sentence)).valid


def test_heavy_tails_and_undertuned_runs_are_no_outliers(runs):
    rng = np.random.default_rng(0)
    tails = np.exp(3e-3 * rng.standard_t(3, 30))
    assert fitted(runs.assign(loss=runs.loss * tails)).valid
    slack = runs.loss.where(runs.run != "r7", runs.loss * 1.5)
    assert fitted(runs.assign(loss=slack), undertuned=10.0).valid


def test_a_form_that_is_farther_than_a_constant_is_no_law_of_these_rows(runs):
    result = api.fit_source(runs, "E/N", interval="none", n_starts=2)
    assert result.r_squared < 0
    assert result.problems[0].startswith("the law is farther from these rows than one number")
    assert api.fit_source(runs, "E + A/N", interval="none", n_starts=2).valid


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda d: api.predict_source(d, "chinchilla", "N=-1,D=1e9"),
            "--at: N is -1; parameters above 0",
        ),
        (lambda d: api.predict_source(d, "chinchilla", "N=nan,D=1e9"), "--at: N is nan"),
        (
            lambda d: api.optimal_source(d, 1.0, "chinchilla", n_starts=2),
            "--budget is 1; 6e.08 FLOPs are",
        ),
        (lambda d: api.optimal_source(d, float("inf"), "chinchilla"), "--budget is inf"),
        (lambda d: fitted(d, undertuned=float("inf")), "--undertuned is inf"),
        (lambda d: fitted(d, seed=-1), "--seed is -1"),
        (lambda d: fitted(d, fix="E=nan"), "--fix: 'E=nan' cannot be read"),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(runs, ask, message):
    with pytest.raises(InputError, match=message):
        ask(runs)
