import json

import numpy as np
import pandas as pd
import pytest

from analysis import test_time, validate
from analysis.errors import InputError
from analysis.table import load

LOOPS = np.array([1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24])


@pytest.fixture
def fit_curves(tmp_path):
    def run(curves, **options):
        rows = [
            {"trial_id": name, "mean_recurrence": 8, "n_loops": t, "val_loss": v}
            for name, (loops, losses) in curves.items()
            for t, v in zip(loops, losses, strict=True)
        ]
        path = tmp_path / "curves.csv"
        pd.DataFrame(rows).to_csv(path, index=False)
        return test_time.fit_test_time(load.load(path), **options)

    return run


def saturating(z, big_z=0.8, floor=2.9, loops=LOOPS):
    return loops, floor + big_z * np.exp(-z * loops)


def test_each_run_gives_back_its_own_curve(fit_curves):
    found = fit_curves({"a": saturating(0.7), "b": saturating(0.25, 0.3, 3.1)}).result
    assert found.valid
    assert found["z[a]"].value == pytest.approx(0.7, abs=1e-6)
    assert found["z[b]"].value == pytest.approx(0.25, abs=1e-6)
    assert found["L_inf[b]"].value == pytest.approx(3.1, abs=1e-6)
    assert found["Z[a]"].value == pytest.approx(0.8, abs=1e-5)
    assert found.tables["curves"][0]["n_points"] == 11


def test_a_single_run_has_plain_names_and_an_interval_that_holds_the_truth(fit_curves):
    rng = np.random.default_rng(0)
    loops, loss = saturating(0.5)
    found = fit_curves({"a": (loops, loss * np.exp(1e-4 * rng.standard_normal(11)))}).result
    for name, truth in (("L_inf", 2.9), ("Z", 0.8), ("z", 0.5)):
        assert found[name].ci_low < truth < found[name].ci_high
        assert found[name].ci_high - found[name].ci_low < 0.1 * truth


def test_a_curve_that_rises_has_no_fit_and_says_so(fit_curves):
    loops = np.arange(1, 9)
    found = fit_curves({"a": saturating(0.5), "up": (loops, 3 + 0.1 * loops)})
    assert not found.result.valid
    assert found.result["z[up]"].value is None
    assert found.result["z[a]"].value == pytest.approx(0.5, abs=1e-5)
    assert any("run up" in p and "does not fall with loops" in p for p in found.result.problems)


def test_one_point_off_the_plateau_does_not_identify_z(fit_curves):
    result = fit_curves({"a": saturating(12.0, 1e5)}).result
    assert any("only one point (T = 1) lies off the plateau" in p for p in result.problems)


def test_runs_with_few_loops_are_left_out_with_a_reason(fit_curves):
    few = (np.array([1, 2, 4]), np.array([3.2, 3.1, 3.05]))
    result = fit_curves({"a": saturating(0.5), "few": few}).result
    assert [(d.reason, d.n_rows) for d in result.dropped] == [
        ("runs evaluated at fewer than 4 numbers of loops (1 runs)", 3)
    ]
    with pytest.raises(InputError, match=r"no run is evaluated at 4 numbers of loops \(most: 3\)"):
        fit_curves({"few": few})


def test_zero_loops_are_refused(fit_curves):
    loops = np.array([0, 1, 2, 4, 8])
    with pytest.raises(InputError, match="n_loops"):
        fit_curves({"a": (loops, 3 + np.exp(-loops.astype(float)))})


def test_a_law_that_is_not_per_run_is_refused(fit_curves):
    with pytest.raises(InputError, match="not fitted run by run"):
        fit_curves({"a": saturating(0.5)}, form="training")


def test_the_exponential_wins_on_data_drawn_from_it(fit_curves):
    """The order of the paper's table, on data of the paper's kind (PAPER.md section 4)."""
    rng = np.random.default_rng(1)
    curves = {}
    for z in (0.2, 0.3, 0.5, 0.9):
        loops, loss = saturating(z)
        curves[f"z{z}"] = loops, loss * np.exp(2e-4 * rng.standard_normal(len(loops)))
    forms = ("test-time", "test-time-shifted-power", "test-time-power-floor", "test-time-power")
    objectives = [fit_curves(curves, form=f).result.objective for f in forms]
    assert objectives == sorted(objectives)
    assert objectives[1] > 10 * objectives[0]


def test_a_curve_that_fits_to_the_losses_last_digits_converges(fit_curves):
    """Misfit of 1e-5, as trained models show: rounding of F is then more than any share of it."""
    loops, loss = saturating(0.9, 0.4, 1.53)
    wobble = np.random.default_rng(0).normal(0, 1e-5, len(loops))
    found = fit_curves({"a": (loops, loss + wobble), "b": saturating(0.7)})
    assert found.result.problems == ()
    line = found.summary()
    assert "2 of 2 curves follow L(T) = L_inf + Z exp(-z T)" in line
    assert "z 0.9 [" in line
    flat = fit_curves({"a": saturating(0.7), "flat": (LOOPS, 3 + 0.001 * LOOPS)})
    assert "1 of 2 curves" in flat.summary()
    assert flat.summary().endswith("of 1 the report says why they do not")


def test_curves_are_printed_as_a_table_in_order_of_budget_and_mu_within_80_columns():
    found = test_time.fit_test_time(load.load("bundled:nano-isoflop", where=("mean_recurrence>1",)))
    lines = found.result.report().splitlines()
    begin = next(i for i, line in enumerate(lines) if line.split()[:2] == ["run", "mu"])
    end = next(i for i, line in enumerate(lines) if line.startswith("  units:"))
    table = lines[begin:end]
    assert max(map(len, table)) <= 80
    assert [x.split()[0] for x in table if x.endswith("FLOPs")] == [
        *("4e+11", "8e+11", "1.6e+12", "3.2e+12", "6.4e+12")
    ]
    assert [x.split()[1] for x in table[1:] if not x.endswith("FLOPs")] == [
        "2",
        "3",
        "4",
        "6",
        "8",
    ] * 5
    run = found.curves[2]
    [row] = [x for x in table if run.run in x]
    assert f"{run.params['L_inf']:.4g} [" in row


def test_judging_refuses_what_fitting_refuses():
    loops = [1, 2, 4, 6, 8, 12]
    once = pd.DataFrame({"T": loops, "loss": [3 + np.exp(-0.5 * t) for t in loops]})
    both = pd.concat([once, once + {"T": 0, "loss": 0.1}])
    for frame, words in (
        (both, "no column that tells runs apart"),
        (both.assign(run="a"), "run a has 2 losses at T = 1"),
    ):
        with pytest.raises(InputError, match=words):
            test_time.fit_test_time(load.load(frame))
        with pytest.raises(InputError, match=words):
            validate.judge(load.load(frame), "test-time")
    mixed = pd.concat([both.assign(run="a"), once.assign(run="b")])
    assert {
        r["n_runs"] for r in validate.judge(load.load(mixed), "test-time")["test-time forms"]
    } == {1}


def test_a_judgement_that_cannot_be_made_says_why_and_the_others_stand():
    rows = []
    for budget in (1e18, 1e19):
        for n in (3e7, 6e7, 1.2e8, 2.4e8):
            d = budget / (6 * n)
            rows.append((budget, n, d, 1.8 + 420 * n**-0.345 + 1500 * d**-0.36 + n % 7e3 * 1e-6))
    table = load.load(pd.DataFrame(rows, columns=["budget", "N", "D", "loss"]))
    judged = validate.judge(table, "chinchilla", n_starts=2)
    [row] = judged["errors on a budget held out"]
    assert "needs budget_flops with three values" in row["reason"]
    assert len(judged["weight of single rows (jackknife, standard errors)"]) == 8
    assert validate._aicc(1.0, 6, 5) == np.inf
    json.dumps(judged, allow_nan=False)
    few = [(c, mu, 1.44e8, 5.6e7) for c in (1e18, 1e19, 1e20) for mu in (2, 8)] + [
        (1e18, 4, 1.44e8, 5.6e7)
    ]
    frame = pd.DataFrame(few, columns=["budget", "mu", "N", "N_rec"])
    unrolled = frame.N + (frame.mu - 1) * frame.N_rec
    frame["D"] = frame.budget / (6 * unrolled)
    frame["loss"] = (2.5 + 5e5 * unrolled**-0.77 + 25000 * frame.D**-0.52) * (
        1 + 1e-3 * (frame.mu % 3)
    )
    compared = validate.compare_laws(load.load(frame), n_starts=2)
    assert [r["aicc"] for r in compared] == [None, None]
    assert all("too few" in r["reason"] for r in compared)
    json.dumps(compared, allow_nan=False)
