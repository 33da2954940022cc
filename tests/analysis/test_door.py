"""The Python door: a DataFrame in, tables out; and columns recognised by their common names."""

import pkgutil
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import analysis
from analysis.table import guess, records
from sweeps.cli.app import build_app


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(17, 22, 40)), np.exp(rng.uniform(20, 26, 40))
    loss = (1.8 + 420 * n**-0.345 + 1500 * d**-0.36) * np.exp(0.003 * rng.standard_normal(40))
    return pd.DataFrame({"Model Size": n, "tokens": d, "eval/loss": loss, "note": "x"})


COLUMNS = {"N": "Model Size", "D": "tokens", "loss": "eval/loss"}


def test_a_frame_is_fitted_predicted_and_shown(frame):
    result = analysis.fit(frame, "chinchilla", columns=COLUMNS, interval="linear")
    table = result.to_frame()
    assert list(table.index) == ["E", "A", "alpha", "B", "beta"]
    assert table.ci_low["alpha"] < 0.345 < table.ci_high["alpha"]
    assert "<table" in result._repr_html_()
    assert result.to_markdown().splitlines()[1] == "|---|---|---|---|"
    assert result.to_latex().count(r"\\") == 6
    assert r"95\%" in result.to_latex()
    at = analysis.predict(
        frame, "chinchilla", {"N": 1e9, "D": 1e10}, columns=COLUMNS, interval="none", n_resamples=50
    )
    assert at.values[0].value == pytest.approx(
        1.8 + 420 * 1e9**-0.345 + 1500 * 1e10**-0.36, rel=0.01
    )
    best = analysis.optimal(
        frame, 1e21, "E + A*N**-a + B*D**-b", columns=COLUMNS, interval="none", n_resamples=50
    )
    assert [v.name for v in best.values][:2] == ["N*", "D*"]


def test_the_command_that_columns_shows_works(frame, tmp_path):
    path = tmp_path / "a b.csv"
    frame.to_csv(path, index=False)
    app = build_app("laws", "figures")
    said = CliRunner().invoke(app, ["columns", str(path)]).stdout
    assert "N (n_params, parameters)" in said
    command = shlex.split(said.splitlines()[-1])
    assert command[:2] == ["parcae", "fit"]
    assert CliRunner().invoke(app, [*command[1:], "--interval", "linear"]).exit_code == 0


def test_columns_reads_what_fit_reads_and_names_a_law_that_fit_takes(loop_records, tmp_path):
    """A smoke sweep: two budgets, three loops of each run and more than three in all."""
    mu, few = loop_records.mean_recurrence, loop_records.budget_flops.isin([1e18, 4e18])
    of = {4: (1, 2, 4), 8: (6, 8, 10), 12: (10, 12, 16)}
    kept = [t in of.get(m, ()) for m, t in zip(mu, loop_records.n_loops, strict=True)]
    smoke = loop_records[few & np.array(kept)]
    assert (smoke.groupby("trial_id").n_loops.nunique() == 3).all()
    path = records.save(smoke.reset_index(drop=True), tmp_path / "records.parquet")
    app = build_app("laws")
    for source, rc in ((str(path), 1), ("bundled:parcae-140m", 0)):
        said = CliRunner().invoke(app, ["columns", source]).stdout.splitlines()[-1]
        assert said == f"parcae fit {source} --law recurrence"
        done = CliRunner().invoke(app, shlex.split(said)[1:])
        assert done.exit_code == rc, done.exception
        assert (
            "2 have fewer than 4 runs, so no exponent follows. Plan at least 4" in done.stdout
        ) == rc


def test_letters_come_before_common_names():
    frame = pd.DataFrame({"N": [1], "params": [2], "loss": [3]})
    assert guess.recognised(frame).columns == {"val_loss": "loss", "n_params": "N"}


def test_importing_the_door_opens_nothing():
    code = "import sys, analysis; assert not {'pandas', 'scipy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_public_function_has_the_name_of_a_module():
    modules = {m.name for m in pkgutil.iter_modules(analysis.__path__)}
    assert not modules & set(analysis.__all__)  # once imported, the module would hide the function


def test_a_table_without_loops_is_studied_by_a_law_of_sizes_and_tokens(frame, tmp_path):
    found = analysis.study(frame, columns=COLUMNS)
    assert list(found.parametric) == ["chinchilla"]
    assert list(found.figures()) == [
        "law_chinchilla",
        "observed_chinchilla",
        "profiles_chinchilla",
    ]
    [drawing] = found.drawings(["law"])
    assert drawing.save(tmp_path)[0].stat().st_size > 10_000
