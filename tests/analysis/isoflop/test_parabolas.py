import numpy as np
import pandas as pd
import pytest

from analysis.errors import InputError
from analysis.isoflop import parabolas
from analysis.table import load, records


def table_of(frame, tmp_path):
    return load.load(records.save(frame, tmp_path / "records.parquet"))


def points(
    gamma=0.4, budgets=(2e18, 4e18, 8e18, 16e18), mus=(1, 2, 4, 6, 8, 12), noise=0.0, seed=0
):
    """Points whose minimum over mu lies exactly at 4 (C / 4e18)^gamma, as a plain table."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in budgets:
        for mu in mus:
            best = np.log(4) + gamma * np.log(c / 4e18)
            loss = 3 + 0.05 * (np.log(mu) - best) ** 2 + noise * rng.standard_normal()
            rows.append((c, mu, c / (4e8 + 8e7 * mu), loss))
    return pd.DataFrame(rows, columns=["budget_flops", "mean_recurrence", "n_tokens", "val_loss"])


@pytest.fixture
def fit_points(tmp_path):
    def run(frame, **options):
        path = tmp_path / "points.csv"
        frame.to_csv(path, index=False)
        return parabolas.fit_recurrence(load.load(path), **options)

    return run


def test_exact_parabolas_give_back_the_exponent(fit_points):
    found = fit_points(points(gamma=0.37))
    assert found.result["gamma_mu"].value == pytest.approx(0.37, abs=1e-9)
    optima = {p.budget_flops: p.optimum for p in found.parabolas if p.axis == "mean_recurrence"}
    assert optima[8e18] == pytest.approx(4 * 2**0.37, rel=1e-9)
    assert found.result.valid


def test_digitised_points_give_the_certified_exponents():
    found = parabolas.fit_recurrence(load.load("bundled:parcae-140m")).result
    # data/README.md: 0.396 and 0.783 over all six parabolas
    assert round(found["gamma_mu"].value, 3) == 0.396
    assert round(found["gamma_D"].value, 3) == 0.783
    assert found["gamma_mu"].ci_low < 0.40 < found["gamma_mu"].ci_high
    # the two lowest budgets have their lowest point at mu = 2, the end of the grid
    assert found["gamma_mu_enclosed"].value == pytest.approx(0.37647, abs=1e-5)
    assert sum("the grid does not enclose mu*" in n for n in found.notes) == 2
    assert any("does not enclose D*" in n and "outside the grid" in n for n in found.notes)
    assert found.valid
    assert any("3 of 36 points are partly hidden" in n for n in found.notes)


def test_minima_at_the_edge_give_no_exponent_and_say_so(fit_points):
    found = fit_points(
        points(gamma=0.0).assign(val_loss=lambda d: 3 + 0.02 * np.log(d.mean_recurrence) ** 1.5)
    )
    result = found.result
    assert not result.valid
    assert result["gamma_mu"].value is None
    assert [p.name for p in result.params] == ["gamma_mu", "k_mu", "gamma_D", "k_D"]
    assert any("0 of 4 budgets enclose a minimum" in p for p in result.problems)
    assert any("lowest measured loss is at mu = 1 (an end of it)" in p for p in result.problems)
    assert found.lines == {}
    assert "null" in result.to_json()


def test_a_parabola_that_opens_downward_has_no_minimum(fit_points):
    frame = points()
    one = frame.budget_flops == 2e18
    frame.loc[one, "val_loss"] = 3 - 0.05 * (np.log(frame.mean_recurrence[one]) - 1.2) ** 2
    found = fit_points(frame)
    first = next(p for p in found.parabolas if p.budget_flops == 2e18)
    assert first.status == "none"
    assert first.optimum is None
    assert "opens downward" in first.reason
    assert found.result["gamma_mu"].value == pytest.approx(0.4, abs=1e-9)  # from the other three


def test_a_vertex_outside_the_grid_is_left_out(fit_points):
    frame = points()
    one = frame.budget_flops == 2e18
    shifted = np.log(frame.mean_recurrence[one]) - np.log(0.8)
    frame.loc[one, "val_loss"] = 3 + 0.05 * shifted**2
    found = fit_points(frame).result
    assert found["gamma_mu"].value == pytest.approx(0.4, abs=1e-9)  # from the other three
    assert any(
        "2e+18 FLOPs is left out of mu*: the vertex is at mu = 0.8" in n for n in found.notes
    )
    assert any("2e+18 FLOPs is left out of D*" in n for n in found.notes)


def test_two_enclosed_minima_are_too_few(fit_points):
    found = fit_points(points(budgets=(2e18, 4e18)))
    assert not found.result.valid
    assert any("2 of 2 budgets enclose a minimum" in p for p in found.result.problems)


def test_budgets_are_not_merged_by_rounding(fit_points):
    frame = points(budgets=(2e18, 2.15e18, 4e18, 8e18))
    assert len(fit_points(frame).parabolas) == 2 * 4


def test_too_few_runs_in_a_budget_are_named(fit_points):
    frame = points()
    frame = frame[(frame.budget_flops != 2e18) | (frame.mean_recurrence < 6)]
    found = fit_points(frame)
    assert any("only 3 different values of mu" in n for n in found.result.notes)


def test_fieller_interval_covers_the_vertex():
    inside = 0
    n_sets = 300
    for seed in range(n_sets):
        frame = points(noise=0.004, seed=seed)
        table = load.Table(frame=frame, source="simulated", kind="points", origin="-")
        p = next(q for q in parabolas.fit_parabolas(table) if q.budget_flops == 4e18)
        low = 0 if p.ci_low is None else p.ci_low
        high = np.inf if p.ci_high is None else p.ci_high
        inside += p.optimum is None or low <= 4 <= high
    # 95 % nominal; three binomial standard deviations of 300 draws are 3.8 %
    assert 0.912 <= inside / n_sets <= 0.988


def test_runs_of_one_setting_that_disagree_are_a_problem(fit_points):
    frame = pd.concat([points(), points().iloc[[3]].assign(val_loss=3.5)])
    result = fit_points(frame).result
    assert any(
        "2 runs of the same setting (budget_flops 2e+18, mean_recurrence 6," in p
        for p in result.problems
    )


def test_records_are_taken_at_training_depth(loop_records, tmp_path):
    table = table_of(loop_records, tmp_path)
    result = parabolas.fit_recurrence(table, all_depths=True).result
    assert result.n_obs == 24
    reasons = {d.reason: d.n_rows for d in result.dropped}
    assert reasons == {"evaluated at another number of loops than mean_recurrence": 216}
    assert result.flops_rule == "paper"


def test_what_is_no_looped_model_with_gradient_through_its_loops_is_left_out(
    loop_records, tmp_path
):
    fixed = loop_records[loop_records.mean_recurrence == 2].copy()
    fixed = fixed[fixed.n_loops == 2].assign(
        trial_id=fixed.trial_id + "-1",
        architecture="transformer",
        mean_recurrence=1,
        mean_backprop_depth=1,
        n_loops=1,
        n_params_core=0,
        n_params_once=fixed.n_params,
        n_params_unrolled=fixed.n_params,
        val_loss=9.0,
    )
    fixed.loc[fixed.budget_flops == fixed.budget_flops.max(), "val_loss"] = 0.5
    fixed["val_bpb"] = fixed.val_loss / np.log(2) / 4
    table = table_of(pd.concat([loop_records, fixed]), tmp_path)
    found = parabolas.fit_recurrence(table)
    reasons = {d.reason: d.n_rows for d in found.result.dropped}
    assert reasons["mean_recurrence=1 is the fixed-depth Transformer, another architecture"] == 4
    assert reasons["gradient through one loop alone (mean_backprop_depth=1)"] == 4
    assert min(p.low for p in found.parabolas if p.axis == "mean_recurrence") > 2
    note = "the fixed-depth Transformer is better than every looped model at 1 of 4 budgets"
    assert note in found.result.notes


def test_fixed_depth_is_left_out_of_any_table_that_names_it(fit_points):
    frame = points(mus=(1, 2, 4, 6, 8, 12, 16))
    fixed = frame.mean_recurrence == 1
    frame.loc[fixed, "val_loss"] -= 0.3
    named = frame.assign(architecture=np.where(fixed, "Transformer", "looped"))
    result = fit_points(named).result
    alone = fit_points(frame[~fixed]).result
    assert result["gamma_mu"].value == alone["gamma_mu"].value
    assert [(d.reason[:42], d.n_rows) for d in result.dropped] == [
        ("mean_recurrence=1 is the fixed-depth Trans", int(fixed.sum()))
    ]
    # loops may be a Transformer's too, and one backward loop is told by its column
    looped = frame[~fixed].assign(
        architecture="transformer",
        mean_backprop_depth=lambda d: np.where(d.mean_recurrence == 2, 1, 2),
    )
    [lost] = fit_points(looped).result.dropped
    assert lost.reason.startswith("gradient through one loop alone")
    assert any('leave them out with --where "mu>1"' in n for n in fit_points(frame).result.notes)


def test_the_advice_on_sizes_keeps_the_looped_models(fit_points):
    frame = points(mus=(1, 2, 4, 6, 8))
    frame["n_params"] = np.where(frame.mean_recurrence == 1, 9e7, 1e8)
    with pytest.raises(InputError, match=r'2 model sizes .*Keep one with --where "mu>1"'):
        fit_points(frame)


def test_a_frame_of_records_is_read_as_a_file_of_them(loop_records, tmp_path):
    of_file = parabolas.fit_recurrence(table_of(loop_records, tmp_path)).result
    of_frame = parabolas.fit_recurrence(load.load(loop_records)).result
    assert of_frame.params == of_file.params
    assert of_frame.dropped == of_file.dropped
    assert load.load(loop_records).kind == "sweep"


def test_mixed_sizes_are_refused(records, tmp_path):
    records = records.astype({"preset": object})
    records.loc[records.mean_recurrence == 4, "preset"] = "370m"
    with pytest.raises(InputError, match=r"presets 140m, 370m are mixed.*--where preset=140m"):
        parabolas.fit_recurrence(table_of(records, tmp_path))


def test_a_table_without_budgets_is_refused(fit_points):
    with pytest.raises(InputError, match=r"needs budget_flops .FLOPs."):
        fit_points(points().drop(columns="budget_flops"))
