"""What the README says of the bundled records of our own is what they give."""

import re
from pathlib import Path

import numpy as np
import pytest

from analysis import api, known, test_time, validate
from analysis.isoflop import parabolas
from analysis.table import load

README = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def looped():
    return load.load("bundled:nano-isoflop", where=("mean_recurrence>1",))


def test_the_records_are_one_clean_commits_and_complete():
    frame = load.load("bundled:nano-isoflop").frame
    assert frame.trial_id.nunique() == 30
    assert set(frame.status) == {"done"}
    (commit,) = frame.git_commit.unique()
    assert commit.startswith("8781def")
    assert "dirty" not in commit
    assert f"{frame.n_params.min():,} to {frame.n_params.max():,} parameters" in README


def test_curves_floors_and_forms(looped):
    found = test_time.fit_test_time(looped)
    sound = [c for c in found.curves if c.values is not None and not c.problem]
    assert f"{len(sound)} of {len(found.curves)}" in README
    gaps = [c.values["L_inf"] / c.val_loss[c.n_loops == c.mean_recurrence][0] - 1 for c in sound]
    assert f"{100 * np.mean(np.abs(gaps)):.3f} %" in README
    rows = validate.compare_forms(looped)
    shown = re.search(r"power \| ([\d., ]+) \|", README)[1].split(", ")
    assert len(shown) == 4
    for text, row in zip(shown, rows, strict=True):
        assert float(text) == pytest.approx(1e7 * row["mean_huber_beyond_mu"], rel=0.03)
    assert [r["law"] for r in rows] == [
        "test-time",
        "test-time-shifted-power",
        "test-time-power-floor",
        "test-time-power",
    ]


def test_gamma_of_the_unified_law(looped):
    gamma = api.fit_table(looped, "unified", interval="none")["gamma"].value
    assert f"gamma {gamma:.2f} [" in README


@pytest.mark.slow
def test_the_interval_of_gamma(looped):
    result = api.fit_table(looped, "unified", n_resamples=1000)
    gamma = result["gamma"]
    assert f"gamma {gamma.value:.2f} [{gamma.ci_low:.2f}, {gamma.ci_high:.2f}]" in README
    assert not result.valid


def test_no_exponent_of_the_recurrence_law_follows():
    result = parabolas.fit_recurrence(load.load("bundled:nano-isoflop")).result
    assert not result.valid
    note = "the fixed-depth Transformer is better than every looped model at 5 of 5 budgets"
    assert note in result.notes


# ---- state-reveals -----------------------------------------------------------------------------

RESULTS = (Path(__file__).resolve().parents[3] / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def revealed():
    return load.load("bundled:state-reveals")


def test_the_law_of_state_reveals_is_valid_with_six_enclosed_minima(revealed):
    result = parabolas.fit_recurrence(revealed).result
    assert result.valid
    optima = [r for r in result.tables["optima"] if r["axis"] == "mean_recurrence"]
    assert [r["status"] for r in optima] == ["interior"] * 6
    for name in ("gamma_mu", "gamma_D"):
        p = result[name]
        assert f"{p.value:.2f} [{p.ci_low:.2f}, {p.ci_high:.2f}]" in RESULTS


def test_the_gain_of_loops_and_the_floor_are_as_told(revealed):
    frame = revealed.frame
    assert f"{frame.loss_floor[0]:.4f}" in RESULTS
    assert frame.val_loss.min() > frame.loss_floor[0]
    top = known.equal_flops(revealed)[-1]
    assert f"{top.gain:.4f} nats" in RESULTS
    assert f"{top.share:.0%} of what separates" in RESULTS


def test_more_loops_compose_longer_gaps(revealed):
    top = known.equal_flops(revealed)[-1]
    found = known.by_gap(revealed, top.budget_flops, top.mean_recurrence)
    excess = found.pivot(index="n_loops", columns="gap", values="excess")
    assert excess.loc[4, 8] > 1.0 > 0.1 > excess.loc[16, 8]  # gaps of 8: a guess, then known
    assert excess.loc[16, 20] > 1.0 > 0.1 > excess.loc[32, 20]


def test_the_records_of_state_reveals_are_small_and_of_two_commits():
    path = Path(load.__file__).parents[1] / "bundled" / load.BUNDLED["state-reveals"]
    assert path.stat().st_size < 300_000
    frame = load.load("bundled:state-reveals").frame
    assert set(frame.status) == {"done"}
    assert {commit[:7] for commit in frame.git_commit} == {"9fc604b", "7a8c1f0"}
    assert not frame.git_commit.str.contains("dirty").any()
    assert frame.data_epochs.max() < 1e-6  # no row was read twice


# ---- many-rules --------------------------------------------------------------------------------


def test_the_law_of_many_rules_is_as_told_and_so_is_why():
    table = load.load("bundled:many-rules")
    result = parabolas.fit_recurrence(table).result
    assert result.valid
    told = RESULTS[RESULTS.index("A second family") :]
    for name in ("gamma_mu", "gamma_D"):
        p = result[name]
        assert f"{p.value:.2f} [{p.ci_low:.2f}, {p.ci_high:.2f}]" in told
    assert {commit[:7] for commit in table.frame.git_commit} == {"f728c5d", "d544e0a", "a4ed04e"}
    assert not table.frame.git_commit.str.contains("dirty").any()
    frame = table.frame[table.frame.mean_recurrence > 1]
    own = frame[frame.n_loops == frame.mean_recurrence]
    best = own.loc[own.groupby("budget_flops").val_loss.idxmin()]
    assert list(best.mean_recurrence) == [3, 3, 4, 8, 12, 16]
    assert all(f"**{loss:.4f}**" in told for loss in best.val_loss)
    deep = frame[frame.n_loops == 32]
    excess = deep.val_loss - deep.loss_floor
    assert excess[deep.n_tokens < 0.65e6].min() > 0.07
    learned = deep[(deep.n_tokens > 0.83e6) & (deep.budget_flops != 4.3e11)]
    assert excess[learned.index].max() < 0.0142
    top = known.equal_flops(table)[-1]
    assert f"{top.gain:.4f} nats" in told
    assert f"{top.share:.0%}".replace("%", " %") in told
