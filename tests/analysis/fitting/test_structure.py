"""What residuals say of rows: checkpoints of one run, kinds that a column tells apart, rows listed twice."""

import numpy as np
import pandas as pd
import pytest

from analysis import api
from analysis.errors import InputError
from analysis.fitting.dataset import prepare
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from analysis.laws import library
from analysis.table import load

TRUTH = {"E": 1.8, "A": 420.0, "alpha": 0.345, "B": 1500.0, "beta": 0.36}
LAW = library.get("chinchilla")


def table(rng, sizes=8, tokens=8, noise=0.003, of_size=0.0):
    """A run per row; with `of_size` the luck that rows of one size share, as checkpoints do."""
    n = np.repeat(np.geomspace(3.1e7, 1e9, sizes), tokens)
    d = np.tile(np.geomspace(2e9, 4e10, tokens), sizes)
    luck = np.repeat(of_size * rng.standard_normal(sizes), tokens)
    loss = LAW.predict(TRUTH, {"n_params": n, "n_tokens": d})
    return pd.DataFrame(
        {"N": n, "D": d, "loss": loss * np.exp(luck + noise * rng.standard_normal(len(n)))}
    )


def fitted(frame, **options):
    return fit(prepare(load.load(frame), LAW), LAW, FitOptions(interval="linear", **options))


def test_checkpoints_of_one_run_a_size_count_as_one_and_a_grid_of_runs_does_not():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(16):
        found = fitted(table(rng, noise=0.001, of_size=0.01), n_starts=4)
        assert found.dataset.n_runs == 8
        assert any(
            n.startswith("rows of one N move together") and "map run=COLUMN" in n
            for n in found.notes
        )
        low, high = found.intervals.low, found.intervals.high
        held.append([low[p] <= TRUTH[p] <= high[p] for p in ("E", "alpha")])
    assert np.mean(held) > 0.8  # 0.14 and 0.36 where all 64 rows count
    alarms = sum(fitted(table(rng), n_starts=4).dataset.n_runs != 64 for _ in range(15))
    assert alarms <= 1


def test_of_five_runs_with_checkpoints_there_are_no_intervals():
    found = fitted(table(np.random.default_rng(1), sizes=5, noise=0.001, of_size=0.01))
    assert "5 sizes cannot give intervals of 5 parameters" in found.problems[0]


def test_names_of_several_runs_of_a_size_are_runs():
    rng = np.random.default_rng(2)
    frames = [
        table(rng, tokens=4).assign(model=lambda d, s=s: [f"{n:.0f}-{s}" for n in d.N])
        for s in "ab"
    ]
    assert prepare(load.load(pd.concat(frames)), LAW).n_runs == 16
    assert prepare(load.load(frames[0]), LAW).runs is None  # the name may be the size's


@pytest.mark.parametrize("by_size", [False, True])
@pytest.mark.parametrize("column", ["optimizer", "seq_len", "learning_rate"])
def test_kinds_that_the_law_does_not_know_are_named_and_the_advice_works(column, by_size):
    frame = table(np.random.default_rng(3))
    second = frame.N > 2e8 if by_size else np.arange(len(frame)) % 2 == 1
    frame[column] = np.where(second, *((1024, 2048) if column == "seq_len" else ("b", "a")))
    assert not fitted(frame).problems
    frame.loc[second, "loss"] *= 1.04
    [words] = fitted(frame).problems
    kinds = {"seq_len": "1024 lies {} above 2048"}.get(column, "b lies {} above a")
    before, after = kinds.split("{}")
    assert f"the loss depends on column {column!r}" in words
    apart = float(words.partition(before)[2].partition("%")[0])
    assert apart == pytest.approx(4.0, abs=1.0)
    assert after in words
    assert ("each kind has sizes of its own" in words) == by_size
    kept = frame[frame[column].astype(str) == words.rpartition("=")[2]]
    assert api.fit_source(kept, "chinchilla", interval="linear").problems == ()


def test_a_column_of_the_law_by_another_name_tells_no_kinds():
    frame = table(np.random.default_rng(4), sizes=5)
    frame.loc[frame.N > 2e8, "loss"] *= 1.04  # the law does not hold, and no column is to blame
    frame["width"] = np.sqrt(frame.N / 100).round()
    assert not any("width" in p for p in fitted(frame).problems)


def test_rows_that_differ_in_the_last_digits_of_the_loss_are_one_measurement():
    frame = table(np.random.default_rng(5))
    twice = pd.concat([frame, frame.assign(loss=frame.loss * (1 + 1e-6))])
    once, both = fitted(frame), fitted(twice)
    assert len(both.dataset) == 64
    assert both.intervals.high["beta"] == once.intervals.high["beta"]
    [left] = both.dataset.table.dropped
    assert (left.n_rows, left.reason) == (
        64,
        "another row's but for less than 1e-05 of the val_loss",
    )
    twice["seed"] = np.repeat([0, 1], 64)
    assert len(fitted(twice).dataset) == 128


def test_several_losses_at_a_setting_without_runs_or_seeds_are_said():
    n, d = (g.ravel() for g in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    loss = 1.8 + 420 / n**0.345 + 1500 / d**0.36
    frame = pd.DataFrame({"N": n, "D": d, "loss": loss * (1 + 1e-3 * np.cos(np.arange(25)))})
    again = frame.head(3).assign(loss=frame.loss.head(3) * 1.03)
    both = pd.concat([frame, again], ignore_index=True)
    law = library.get("chinchilla")
    [note] = [n for n in prepare(load.load(both), law).table.notes if "several losses" in n]
    assert note.startswith("3 settings hold several losses, up to 3.00% apart")
    for named in (both.assign(run=range(28)), both.assign(seed=[0] * 25 + [1] * 3), frame):
        notes = prepare(load.load(named), law).table.notes
        assert not any("several losses" in note for note in notes)


def test_checkpoints_of_one_run_tell_nothing_of_other_runs():
    """Their residuals go together: with a correlation of 0.95 intervals that count 60 held L_inf in 17 of 40."""
    law, rng = library.get("frontier"), np.random.default_rng(0)
    compute, errors = np.geomspace(1e15, 1e18, 60), [0.0]
    for _ in range(59):
        errors.append(0.95 * errors[-1] + 0.004 * rng.standard_normal())
    frame = pd.DataFrame({"C": compute, "loss": (1.7 + 400 * compute**-0.15) * np.exp(errors)})
    data = prepare(load.load(frame.assign(run="a")), law)
    assert any("of 1 run: rows of one run are not independent" in n for n in data.table.notes)
    for kind in ("profile", "linear", "bootstrap"):
        found = fit(data, law, FitOptions(n_starts=2, interval=kind))
        assert found.result["L_inf"].ci_low is None
        assert found.result.problems == (
            "1 run cannot give intervals of 3 parameters: at least 4 are needed",
        )
    for ask in (found.resamples, lambda: found.profile("L_inf")):
        with pytest.raises(InputError, match="1 run cannot give intervals"):
            ask()
    ladder = frame.assign(run=[f"r{i}" for i in range(60)])
    assert prepare(load.load(ladder), law).n_runs > 40  # a run each
    loops = np.arange(1, 9)
    curve = pd.DataFrame({"T": loops, "loss": 1.5 + np.exp(-loops / 2.0), "run": "a"})
    over = library.get("test-time")
    assert prepare(load.load(curve), over).n_runs == 8  # what one run's curve over loops asks


def test_one_name_for_many_models_is_no_run():
    n, d = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 5)))
    loss = 1.7 + 400 * n**-0.34 + 410 * d**-0.28
    loss *= np.exp(0.002 * np.random.default_rng(0).standard_normal(30))
    frame = pd.DataFrame({"run": "chinchilla", "N": n, "D": d, "loss": loss})
    found = api.fit_table(load.load(frame), "chinchilla", interval="linear")
    assert found.valid
    assert any("it names no run" in note for note in found.notes)


def test_one_name_given_to_two_runs_leaves_the_others_runs():
    """12 runs of 20 checkpoints; two have one name, so what tells them apart is their size."""
    frame = table(np.random.default_rng(1), sizes=12, tokens=20, of_size=0.01)
    names = np.repeat([f"r{i}" for i in (*range(11), 10)], 20)
    data = prepare(load.load(frame.assign(run=names)), LAW)
    assert data.n_runs == 12
