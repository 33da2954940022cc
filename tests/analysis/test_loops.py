import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.errors import InputError
from analysis.loops import inverted, loops_to_reach
from analysis.table import load, records
from analysis.table.load import Table
from sweeps.cli.app import build_app

TRUTH = {"L_inf": 2.9, "Z": 0.8, "z": 0.45}
LOOPS = np.array([1, 2, 3, 4, 6, 8, 10, 12, 16], dtype=float)


def curve(floor: float = TRUTH["L_inf"], noise: float = 0.0, seed: int = 0) -> np.ndarray:
    loss = floor + TRUTH["Z"] * np.exp(-TRUTH["z"] * LOOPS)
    return loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(LOOPS)))


def table_of(**curves: np.ndarray) -> Table:
    frames = [
        pd.DataFrame({"trial_id": run, "n_loops": LOOPS, "val_loss": loss})
        for run, loss in curves.items()
    ]
    return Table(frame=pd.concat(frames, ignore_index=True), source="-", kind="points", origin="-")


def test_the_curve_is_inverted_and_never_below_one_loop():
    values = {k: np.array([v]) for k, v in TRUTH.items()}
    assert inverted(values, 2.9 + 0.8 * np.exp(-0.45 * 7))[0] == pytest.approx(7.0)
    assert inverted(values, 4.0)[0] == 1.0
    assert np.isinf(inverted(values, 2.9)[0])


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    target = TRUTH["L_inf"] + TRUTH["Z"] * np.exp(-TRUTH["z"] * 5)
    inside = 0
    for seed in range(200):
        found = loops_to_reach(table_of(a=curve(noise=1e-3, seed=seed)), target).values[0]
        inside += found.ci_low <= 5.0 <= found.ci_high
    # three binomial standard deviations of 200 sets at 95 % are 4.6 %
    assert 0.904 <= inside / 200 <= 0.996


def test_runs_that_never_reach_it_and_long_roads_are_named():
    high = curve(floor=3.2, noise=1e-4, seed=1)
    found = loops_to_reach(table_of(a=curve(noise=1e-4), b=high), 3.0)
    assert [v.name for v in found.values] == ["T[a]"]
    assert found.values[0].value == pytest.approx(np.log(0.8 / 0.1) / 0.45, rel=0.01)
    assert any("b: never reached; its curve levels off at L_inf = 3.2" in n for n in found.notes)
    far = loops_to_reach(table_of(a=curve(noise=1e-4)), 2.9003)
    assert not far.inside
    assert "beyond the 16 loops measured" in far.report()
    with pytest.raises(InputError, match=r"no run reaches it .* the lowest floor is L_inf = 2\.9"):
        loops_to_reach(table_of(a=curve(noise=1e-4)), 2.5)
    with pytest.raises(InputError, match="--loss is -1"):
        loops_to_reach(table_of(a=curve()), -1.0)


def test_near_the_floor_the_interval_is_open_above():
    noisy = table_of(a=curve(noise=3e-3, seed=3))
    from analysis.test_time import fit_test_time

    floor = fit_test_time(noisy).curves[0].values["L_inf"]
    found = loops_to_reach(noisy, floor + 1e-3)
    assert found.values[0].ci_high is None
    assert ", inf]" in found.report()


def test_by_the_unified_law_at_a_setting(loop_records, paper_loss, tmp_path):
    path = records.save(loop_records, tmp_path / "records.parquet")
    at = {"mean_recurrence": 8.0, "n_tokens": 1e10}
    unrolled = 144_323_136 + 7 * 14_159_040
    target = float(paper_loss(8, 1e10, 5, unrolled))
    few = {"n_resamples": 100, "interval": "none"}
    found = loops_to_reach(load.load(path), target, at, **few)
    assert found.values[0].ci_low <= 5.0 <= found.values[0].ci_high
    assert found.values[0].value == pytest.approx(5.0, rel=0.1)
    with pytest.raises(InputError, match="the unified law levels off at"):
        loops_to_reach(load.load(path), 2.0, at, **few)


def test_the_verb_prints_an_answer(tmp_path):
    app = build_app("laws", "figures")
    path = tmp_path / "curve.csv"
    table_of(a=curve(noise=1e-4)).frame.to_csv(path, index=False)
    done = CliRunner().invoke(app, ["loops", str(path), "--loss", "3.0", "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["values"][0]["value"] == pytest.approx(4.62, rel=0.01)
    assert data["values"][0]["unit"] == "loops"
