"""Learning curves and their envelope, on runs whose envelope is known in closed form."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import curves
from analysis.errors import InputError
from analysis.table import load
from sweeps.cli.app import build_app

ALPHA, BETA = 0.35, 0.37


@pytest.fixture
def history():
    """Eight sizes, 60 steps each: E + A N^-alpha + B D^-beta, whose envelope falls as C^-(ab/(a+b))."""
    rows = []
    for n in np.geomspace(1e7, 1e9, 8):
        for d in np.geomspace(2, 200, 60) * n:
            rows.append((f"{n:.2g}", n, d, 1.8 + 420 * n**-ALPHA + 1500 * d**-BETA))
    return pd.DataFrame(rows, columns=["run", "N", "D", "loss"])


def test_the_envelope_has_the_exponent_of_the_law_below_it(history):
    found = curves.of_table(load.load(history))
    assert [len(rows) for _, rows in found.runs] == [60] * 8
    fitted = curves.fit_envelope(found, interval="none")
    assert fitted.params["a"] == pytest.approx(ALPHA * BETA / (ALPHA + BETA), rel=0.05)
    assert fitted.params["L_inf"] == pytest.approx(1.8, abs=0.1)
    assert fitted.dataset.n_runs >= 6
    least = curves.envelope(found).frame
    assert least.val_loss.is_monotonic_decreasing


def test_rows_of_step_0_have_spent_nothing_and_are_left_out(history):
    history.loc[history.groupby("run").head(1).index, "D"] = 0.0
    few = history.groupby("run", sort=False).head(8)  # of eight rows none is left out as warm-up
    frame = curves.envelope(curves.of_table(load.load(few))).frame
    assert len(frame) > 10
    assert frame.train_flops.min() == pytest.approx(6 * few.N.min() * few.D[few.D > 0].min())


def test_the_command_fits_and_draws(history, tmp_path):
    history.to_csv(tmp_path / "h.csv", index=False)
    app = build_app("laws", "figures")
    options = ["--json", "--interval", "none", "--out", str(tmp_path / "f"), "--x", "tokens"]
    done = CliRunner().invoke(app, ["curves", str(tmp_path / "h.csv"), *options])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["law"] == "frontier"
    assert {p.name for p in (tmp_path / "f").glob("*.png")} == {"curves.png", "envelope.png"}
    drawn = pd.read_csv(tmp_path / "f" / "curves.csv")
    assert set(drawn.panel) == {"loss"}
    assert drawn.x.max() == pytest.approx(2e11)


def test_tokens_alone_give_curves_without_an_envelope(tmp_path):
    steps = np.arange(0, 1000, 50)
    chart = pd.DataFrame({"Step": steps})
    for run, floor in (("a", 2.0), ("b", 2.2)):
        for end in ("", "__MIN", "__MAX"):
            chart[f"{run} - train/loss{end}"] = floor + 3 * np.exp(-steps / 200)
    path = tmp_path / "chart.csv"
    chart.to_csv(path, index=False)
    words = ["curves", str(path), "--columns", "run=run,loss=train/loss,D=Step*131072"]
    app = build_app("laws", "figures")
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "f")])
    assert done.exit_code == 0, done.exception
    assert "tokens alone give curves and no envelope" in done.stderr
    drawn = pd.read_csv(tmp_path / "f" / "curves.csv")
    assert drawn.groupby("series").size().tolist() == [19, 19]  # step 0 has no place on a log axis
    assert drawn.x.max() == 950 * 131072
    assert not (tmp_path / "f" / "envelope.png").exists()
    for more in ([], ["--x", "flops", "--out", str(tmp_path)], ["--json", "--out", str(tmp_path)]):
        done = CliRunner().invoke(app, [*words, *more])
        assert isinstance(done.exception, InputError)
        assert "map" in str(done.exception)


def test_a_table_without_curves_is_told_what_is_missing(history):
    with pytest.raises(InputError, match="curves need a row per run and step"):
        curves.of_table(load.load(history.drop(columns="run")))
    with pytest.raises(InputError, match="no run has 5 rows"):
        curves.of_table(load.load(history[::20]))


def test_a_loss_that_is_none_is_left_out_and_does_not_cut_the_envelope(history):
    whole = curves.envelope(curves.of_table(load.load(history))).frame
    own = history[history.run == history.run.unique()[3]]
    broken = history.astype({"loss": object})
    broken.loc[own.index[10], "loss"] = "inf"
    broken.loc[own.index[20], "loss"] = ""
    found = curves.envelope(curves.of_table(load.load(broken)))
    reasons = [(d.reason, d.n_rows) for d in found.dropped]
    assert reasons == [("no finite loss; the curve goes straight across", 2)]
    assert len(found.frame) == len(whole)
    assert found.frame.val_loss.to_numpy() == pytest.approx(whole.val_loss.to_numpy(), rel=1e-3)


def test_curves_keep_what_was_left_out_and_say_which_loss_they_are_of(history):
    both = history.rename(columns={"loss": "eval/loss"}).assign(
        **{"train/loss": history.loss - 0.5}
    )
    first = history.D.min()
    table = load.load(both, where=(f"D>{first}",))
    found = curves.of_table(table)
    assert found.labels["loss"] == "validation loss (nats per token)"
    assert any("those of the training loss: --columns" in n for n in found.notes)
    result = curves.fit_envelope(found, interval="none").result
    assert (f"not D>{first}", 1) in [(d.reason, d.n_rows) for d in result.dropped]
    assert set(table.notes) <= set(result.notes)
    named = load.load(both, {"run": "run", "N": "N", "D": "D", "loss": "train/loss"})
    assert curves.of_table(named).what == "training loss"
