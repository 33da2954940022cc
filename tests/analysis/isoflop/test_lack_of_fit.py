"""Tables that must not give a law: noise, runs that are off, and losses that are no parabola."""

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.isoflop import parabolas
from analysis.table import checks, load

BUDGETS = (1e18, 3e18, 1e19, 3e19)
AROUND = np.geomspace(0.4, 2.5, 7)  # times N*
TRUE = 0.28 / 0.62  # the exponent of N*


def runs(seed, factors=AROUND, budgets=BUDGETS, noise=1e-3):
    """Chinchilla's law at factors of N* in each budget."""
    c = np.repeat(np.asarray(budgets, dtype=float), len(factors))
    n = best(c) * np.tile(factors, len(budgets))
    luck = np.exp(noise * np.random.default_rng(seed).standard_normal(len(c)))
    d = c / 6 / n
    loss = (1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28) * luck
    return pd.DataFrame({"budget_flops": c, "n_params": n, "n_tokens": d, "val_loss": loss})


def best(c):
    return (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62) * (c / 6) ** TRUE


def fit(frame, over="N"):
    table = load.Table(frame=frame, source="runs", kind="points", origin="-")
    return parabolas.fit_isoflop(checks.with_grouped_budgets(table), over).result


def noise_alone(frame, seed):
    luck = np.random.default_rng([seed, 1]).standard_normal(len(frame))
    return frame.assign(val_loss=3 * np.exp(0.01 * luck))


def test_noise_gives_no_exponent():
    eight = [noise_alone(runs(s, budgets=np.geomspace(1e18, 1e20, 8)), s) for s in range(20)]
    results = [fit(frame) for frame in eight]
    assert sum(r.valid for r in results) == 0
    said = [p for r in results for p in r.problems if "bend no more than the runs' noise" in p]
    assert len(said) >= 15
    mus = np.array([2.0, 3, 4, 6, 8, 12])
    budgets = np.repeat(np.geomspace(1e18, 1e20, 6), len(mus))
    looped = pd.DataFrame({"budget_flops": budgets, "mean_recurrence": np.tile(mus, 6)})
    looped["n_tokens"] = budgets / (6e7 * (1 + looped.mean_recurrence))
    assert not any(fit(noise_alone(looped, s), "mu").valid for s in range(20))


def test_sound_tables_stay_valid():
    results = [fit(runs(s, noise=s_noise)) for s in range(8) for s_noise in (1e-4, 1e-3, 3e-3)]
    assert all(r.valid for r in results)


def test_a_budget_that_does_not_bend_is_named_and_the_others_give_the_exponent():
    frame = runs(0)
    one = frame.budget_flops == 3e18
    luck = np.random.default_rng(2).standard_normal(one.sum())
    line = 3 + 1e-4 * np.log(frame.n_params[one] / best(3e18)) ** 2
    frame.loc[one, "val_loss"] = line + 1e-3 * luck
    result = fit(frame)
    [flat] = [p for p in result.tables["optima"][:4] if p["status"] == "flat"]
    assert flat["budget_flops"] == 3e18
    assert any("is not told from 0 (p = " in n for n in result.notes)
    assert result["gamma_N_enclosed"].value == pytest.approx(TRUE, abs=0.02)


@pytest.mark.parametrize("n_off", [1, 2, 4])
def test_a_run_off_its_budget_is_named_whatever_the_other_budgets_hold(n_off):
    frame = runs(3)
    off = np.array([3, 9, 18, 22])[:n_off]  # one run a budget
    frame.loc[off, "val_loss"] *= 1.03
    said = [p for p in fit(frame).problems if "lies off the parabola of the others" in p]
    assert len(said) == n_off
    assert all(f"val_loss!={float(frame.val_loss[i])!r}" in "".join(said) for i in off)


def test_of_several_seeds_the_one_that_is_off_is_named():
    both = pd.concat([runs(4).assign(seed=0), runs(5).assign(seed=1)], ignore_index=True)
    assert fit(both).valid
    both["trial_id"] = [f"r{i}" for i in range(len(both))]
    both.loc[38, "val_loss"] *= 1.05
    [said] = [p for p in fit(both).problems if "lies off the parabola" in p]
    assert said.startswith("3e+18 FLOPs: run r38, N = ")
    assert said.endswith('leave it out with --where "trial_id!=r38"')
    assert fit(both.drop(38)).valid


def test_a_loss_that_is_no_parabola_is_told_and_refused_where_it_moves_the_law():
    frame = runs(0, factors=np.geomspace(0.15, 6, 9), noise=5e-4)
    assert fit(frame).valid
    beyond = np.log(frame.n_params / best(frame.budget_flops)) - 1
    badly_tuned = frame.assign(val_loss=frame.val_loss * (1 + 0.03 * beyond.clip(lower=0)))
    result = fit(badly_tuned)
    assert not result["gamma_N"].ci_low <= TRUE <= result["gamma_N"].ci_high
    [over_n] = result.problems
    assert over_n.startswith("lack of fit: along log N the loss bends otherwise than a parabola")
    assert "outside its 95% interval" in over_n
    assert any("lack of fit: along log D" in n for n in result.notes)


def test_a_bend_that_leaves_the_law_where_it_is_is_a_note(tmp_path):
    path = tmp_path / "wide.csv"
    runs(0, factors=np.geomspace(1 / 8, 8, 9)).to_csv(path, index=False)
    result = api.fit_source(path, "isoflop", over="N")
    assert result.valid
    assert any("lack of fit: along log N" in n and "in its 95% interval" in n for n in result.notes)
    wide = [
        n for n in result.notes if "the grid of N, " in n and "ends differ by a factor of 64" in n
    ]
    assert len(wide) == 4
    digitised = api.fit_source("bundled:parcae-140m", "recurrence", confidence=0.9)
    assert digitised.valid
    [note] = [n for n in digitised.notes if n.startswith("lack of fit")]
    assert "order 3 shared by all budgets, F test: p = 6e-06" in note
    assert "gamma_mu is 0.369, in its 95% interval [0.364, 0.427]" in note


@pytest.mark.parametrize("off", [0.008, 0.03])
def test_budgets_are_told_by_gaps_where_runs_missed_them(off):
    frame = runs(6)
    missed = np.random.default_rng(7).uniform(-off, off, len(frame))
    achieved = frame.assign(budget_flops=frame.budget_flops * (1 + missed))
    result = fit(achieved)
    assert result.valid
    assert [p["n_runs"] for p in result.tables["optima"]] == [7] * 8
    assert result["gamma_N"].value == pytest.approx(fit(frame)["gamma_N"].value, abs=2e-3)
    assert any("28 values of budget_flops make 4 budgets" in n for n in result.notes)


def test_budgets_with_curves_of_their_own_stay_apart_and_others_ask_for_the_plan():
    close = pd.concat([runs(6, budgets=(1e18, 1.04e18)), runs(6, budgets=(3e18, 9e18))])
    assert len(fit(close.reset_index(drop=True)).tables["optima"]) == 2 * 4
    frame = runs(6, budgets=1e18 * 1.1 ** np.arange(4))
    missed = np.random.default_rng(7).uniform(-0.04, 0.04, len(frame))
    result = fit(frame.assign(budget_flops=frame.budget_flops * (1 + missed)))
    assert not result.valid
    assert "Map the budgets that were planned, like --columns budget=COLUMN" in result.problems[0]
