"""Choosing rows of a pool: a synthetic study whose law is known to be wrong far from the target."""

import numpy as np
import pandas as pd
import pytest

from analysis.design import candidates
from analysis.design.basins import Basins
from analysis.design.descent import descend, parts
from analysis.design.pool import Pool, expected_error, predict
from analysis.errors import InputError
from analysis.fitting import objective, search
from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from analysis.laws import formula, library

LAW = library.get("chinchilla")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """12 sizes x 12 token counts of a Chinchilla law, with a bend that only small models show."""
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 3e9, 12), np.geomspace(1e9, 1e11, 12)))
    rng = np.random.default_rng(0)
    values = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
    loss = LAW.predict(values, {"n_params": n, "n_tokens": d})
    loss = loss * np.exp(0.004 * np.log(1e8 / n).clip(0) ** 2 + 1e-3 * rng.standard_normal(len(n)))
    frame = pd.DataFrame({"N": n, "D": d, "loss": loss, "flops": 6 * n * d})
    return frame.assign(split=np.where(frame.flops > 3e20, "test", "train"))


@pytest.fixture
def path(frame, tmp_path):
    frame.to_csv(tmp_path / "pool.csv", index=False)
    return tmp_path / "pool.csv"


def error(frame, rows) -> float:
    """Root mean square error of the log loss on the target, of a fit to these rows."""

    def columns(part):
        return {"n_params": part.N.to_numpy(), "n_tokens": part.D.to_numpy()}

    part, test = frame.iloc[rows], frame[frame.split == "test"]
    data = Dataset.of(columns(part), part.loss.to_numpy())
    found = fit(data, LAW, FitOptions(interval="none")).predict(columns(test))
    return float(np.sqrt(np.mean(np.log(found / test.loss.to_numpy()) ** 2)))


def test_a_tenth_of_the_cost_predicts_what_was_not_run(frame, path):
    found = candidates.design(path, "chinchilla", cost="flops", share=0.1)
    test = np.log(frame.loss[frame.split == "test"])
    ours = error(frame, list(found.rows))
    assert ours < 0.006  # the law is 2 % off at the smallest models
    assert 1 - ours**2 / test.var() > 0.95
    assert list(found.predicted) == test.index.tolist()
    told = np.log(list(found.predicted.values())) - test
    assert np.sqrt(np.mean(told**2)) < 0.006


def test_what_the_law_misses_at_the_nearest_runs_is_missed_on_the_target_too():
    """A power law fitted to a loss that bends away from it: the process carries the bend on."""
    x = np.geomspace(1, 30, 16)
    loss = 3 * x**-0.2 * np.exp(0.02 * np.log(x) ** 2)
    law = formula.law("exp(a)*x**-b", {"x": "x"}, data={"x": x, "loss": loss})
    pool = Pool(
        law=law,
        columns={"x": x},
        loss=loss,
        cost=x,
        candidates=np.arange(12),
        target=np.arange(12, 16),
    )
    by_law, with_misfit = (
        np.abs(np.log(p / loss[pool.target])) for p in predict(pool, pool.candidates)
    )
    assert by_law.max() > 0.03
    assert with_misfit[0] < 0.4 * by_law[0]
    assert (with_misfit < by_law).all()


def test_the_bill_is_right_and_the_seed_decides(frame, path):
    found = candidates.design(path, "chinchilla", cost="flops", share=0.05)
    again = candidates.design(path, "chinchilla", cost="6*N*D", share=0.05)
    assert found.rows == again.rows
    assert len(set(found.rows)) == len(found.rows)
    assert (frame.split.iloc[list(found.rows)] == "train").all()
    assert found.spent == pytest.approx(frame.flops.iloc[list(found.rows)].sum())
    assert found.spent <= 0.05 * found.of
    assert found.of == pytest.approx(frame.flops[frame.split == "train"].sum())


def test_a_loss_is_read_of_chosen_rows_only(frame, path, tmp_path):
    found = candidates.design(path, "chinchilla", cost="flops", share=0.02)
    hidden = frame.assign(
        loss=np.where(frame.index.isin(found.rows), frame.loss, frame.loss * 3 + 1)
    )
    hidden.to_csv(tmp_path / "hidden.csv", index=False)
    same = candidates.design(tmp_path / "hidden.csv", "chinchilla", cost="flops", share=0.02)
    assert same.rows == found.rows
    assert same.predicted == found.predicted


def test_runs_without_a_loss_are_chosen_after_those_that_have_one(frame, tmp_path):
    rng = np.random.default_rng(1)
    measured = rng.choice(frame.index[frame.split == "train"], 12, replace=False)
    some = frame.assign(loss=frame.loss.where(frame.index.isin(measured)))
    some.to_csv(tmp_path / "some.csv", index=False)
    found = candidates.design(tmp_path / "some.csv", "chinchilla", cost="flops", share=0.1)
    assert found.rows
    assert not set(found.rows) & set(measured)
    assert set(found.predicted) == set(frame.index[frame.split == "test"])


@pytest.mark.parametrize("lost", [np.inf, -1.0, 0.0])
def test_a_run_that_left_no_loss_is_no_candidate_and_named(frame, path, tmp_path, lost):
    frame.assign(loss=frame.loss.where(frame.index != 5, lost)).to_csv(tmp_path / "lost.csv")
    found = candidates.design(tmp_path / "lost.csv", "chinchilla", cost="flops", share=0.1)
    whole = candidates.design(path, "chinchilla", cost="flops", share=0.1)
    assert found.of == pytest.approx(whole.of - frame.flops[5])
    assert 5 not in found.rows
    assert len(found.rows) > 5
    assert "left out: 1 rows whose loss is infinite or not above 0 (row 5)" in found.notes


def test_groups_share_the_budget(frame, tmp_path):
    both = pd.concat([frame.assign(group="a"), frame.assign(group="b", loss=frame.loss + 0.3)])
    both.to_csv(tmp_path / "both.csv", index=False)
    found = candidates.design(tmp_path / "both.csv", "chinchilla", cost="flops", share=0.05)
    sides = np.array(found.rows) >= len(frame)
    assert 0.3 < sides.mean() < 0.7
    assert found.spent <= 0.05 * found.of


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.0}, "--share is 0"),
        ({"share": 1e-9}, "buys nothing. Raise it to"),
        ({"cost": "gpu_hours"}, "'gpu_hours' is no column"),
        ({"cost": "log(N/3e9)"}, "every candidate needs a cost above 0"),
        ({"law": "chinchila"}, "did you mean 'chinchilla'"),
        ({"law": "iso-depth"}, "needs n_params_once"),
        ({"target": "N>1e12"}, "no row meets"),
        ({"by": "family"}, "'family' is no column"),
    ],
)
def test_bad_input_is_one_sentence(path, changes, words):
    given = {"law": "chinchilla", "cost": "flops", "share": 0.1} | changes
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
        candidates.design(path, given.pop("law"), **given)
    assert "\n" not in str(caught.value)


def test_many_starts_at_once_end_where_scipy_does(frame):
    train = frame[frame.split == "train"]
    columns = {"n_params": train.N.to_numpy(), "n_tokens": train.D.to_numpy()}
    whole = objective.build(LAW, Dataset.of(columns, train.loss.to_numpy()), FitOptions(delta=0.01))
    theta = whole.minimise(np.ones(5)).x
    logs, slopes = parts(whole, np.stack([theta, theta]))
    r, jacobian = whole.residuals_and_jacobian(theta)
    np.testing.assert_allclose(logs[1] - np.log(whole.y), r, atol=1e-12)
    np.testing.assert_allclose(slopes[1], jacobian, atol=1e-12)
    starts = search.starts(whole, 8, np.random.default_rng(0))
    _, costs = descend(whole, starts, rounds=200)
    assert costs.min() == pytest.approx(whole.value(theta), rel=1e-4)


def test_expected_error_is_that_of_simulated_fits():
    """A straight line fitted to rows with a smooth misfit: the formula against 20,000 draws."""
    x = np.linspace(-1, 1, 9)
    slopes = np.stack([np.ones(9), x], axis=1) * 100  # a wide prior
    smooth = 0.04 * np.exp(-0.5 * (x[:, None] - x[None]) ** 2)
    rows, target, own = np.array([0, 2, 3, 5]), np.array([7, 8]), 0.01
    rng = np.random.default_rng(0)
    misfit = rng.multivariate_normal(np.zeros(9), smooth, 20_000)
    y = misfit[:, rows] + np.sqrt(own) * rng.standard_normal((20_000, 4))
    lines = np.linalg.lstsq(slopes[rows], y.T)[0]
    simulated = np.square(misfit[:, target] - (slopes[target] @ lines).T).sum(axis=1).mean()
    formula = expected_error(rows[None], slopes, target, smooth, own)[0]
    assert formula == pytest.approx(simulated, rel=0.03)


def test_basins_that_predict_the_same_are_one(frame):
    train = frame[frame.split == "train"]
    columns = {"n_params": train.N.to_numpy(), "n_tokens": train.D.to_numpy()}
    whole = objective.build(LAW, Dataset.of(columns, train.loss.to_numpy()), FitOptions(delta=0.01))
    basins = Basins(
        whole, np.arange(len(train))[-10:], np.eye(len(train)), np.random.default_rng(0)
    )
    basins.refit(np.arange(0, len(train), 2))
    assert len(basins.weights) < 3
    assert basins.weights.sum() == pytest.approx(1.0)
