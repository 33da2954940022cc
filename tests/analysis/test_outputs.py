"""Figures, report and verbs: what a user is left with."""

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis import test_time
from analysis.errors import InputError
from analysis.figures import parametric, sweeps
from analysis.fitting.fit import fit_table
from analysis.fitting.fit import fit_table as fit_of
from analysis.isoflop import parabolas
from analysis.laws import library
from analysis.report import study
from analysis.report.html import render, write_report
from analysis.table import load, records
from sweeps import parallel
from sweeps.cli.app import build_app, command


@pytest.fixture
def app():
    return build_app("laws", "figures")


@pytest.fixture
def sweep(loop_records, tmp_path):
    """A sweep folder, as `parcae run` leaves it."""
    records.save(loop_records, tmp_path / "runs" / "simulated" / "records.parquet")
    return tmp_path / "runs" / "simulated"


DRAWN = ("isoflop", "contours")  # scatter and line, contour


def test_figures_are_the_same_bytes_twice_and_the_csv_is_what_is_drawn(sweep, tmp_path):
    digests = []
    found = study.Study(load.load(sweep))
    assert set(found.figures()) == {
        *DRAWN,
        "test-time",
        "power_laws",
        "law_training",
        "observed_training",
        "observed_unified",
        "profiles_training",
        "frontiers",
    }
    for name in "ab":
        files = [
            path for d in found.drawings(DRAWN) for path in d.save(tmp_path / name, ("png", "pdf"))
        ]
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    assert digests[0] == digests[1]
    assert {f"{n}.{s}" for n in DRAWN for s in ("png", "pdf", "csv", "txt")} == set(digests[0])
    drawn = pd.read_csv(tmp_path / "a" / "isoflop.csv")
    measured = drawn[
        (drawn.kind == "points") & (drawn.panel == "n_tokens") & ~drawn.series.str.startswith("min")
    ]
    rows = records.load(sweep)
    # mu = 2 with one loop of gradient enters no parabola, and is not drawn beside one
    rows = rows[(rows.n_loops == rows.mean_recurrence) & (rows.mean_backprop_depth > 1)]
    np.testing.assert_allclose(np.sort(measured.y), np.sort(rows.val_loss), rtol=1e-7)


def test_minima_the_grid_does_not_enclose_are_hollow():
    drawing = sweeps.isoflop(parabolas.fit_recurrence(load.load("bundled:parcae-140m")))
    rows = drawing.drawn
    stars = rows[rows.series.str.startswith("minimum") & (rows.panel == "mean_recurrence")]
    assert stars.kind.value_counts().to_dict() == {"points": 4, "points outside the fit": 2}
    assert set(stars[stars.kind != "points"].series) == {
        "minimum 1e18 (not enclosed)",
        "minimum 2e18 (not enclosed)",
    }


def test_power_law_extrapolates_dashed_and_without_an_exponent_draws_no_line():
    found = parabolas.fit_recurrence(load.load("bundled:parcae-140m"))
    short = dataclasses.replace(found.lines["n_tokens"], x_low=4e18)
    rows = sweeps.power_laws(dataclasses.replace(found, lines={"n_tokens": short})).drawn
    beyond = rows[rows.kind == "extrapolation"]
    assert set(beyond.panel) == {"n_tokens"}
    assert (beyond.x.min(), beyond.x.max()) == pytest.approx((1e18, 4e18))
    bare = sweeps.power_laws(dataclasses.replace(found, lines={})).drawn
    assert set(bare.kind) <= {"points", "points outside the fit", "interval"}


def test_profile_and_contour_csv_hold_what_the_figure_says():
    table = load.load("bundled:parcae-140m")
    fitted = fit_table(table, library.get("training"), interval="profile")
    result = fitted.result
    rows = parametric.profiles(fitted).drawn
    y = rows[(rows.panel == "y") & (rows.kind == "fit")]
    limit = rows[rows.kind == "limit"].y.iloc[0]
    inside = y[y.y <= limit].x
    assert result["y"].ci_low == pytest.approx(inside.min(), rel=0.01)
    assert result["y"].ci_high == pytest.approx(inside.max(), rel=0.01)
    rows = parametric.contours(fitted).drawn
    frontier = rows[rows.series == "frontier"].sort_values("x")
    assert frontier.y.is_monotonic_increasing
    assert set(rows[(rows.series == "frontier") & (rows.y > 12.01)].kind) == {"extrapolation"}


def test_observed_against_predicted_shows_every_row_and_its_error():
    table = load.load("bundled:parcae-140m")
    rows = parametric.observed(fit_of(table, library.get("training"), interval="none")).drawn
    shown = rows[(rows.panel == "observed") & (rows.kind == "points")]
    assert sorted(shown.y) == sorted(table.frame.val_loss)
    error = rows[(rows.panel == "error") & (rows.kind == "points")]
    np.testing.assert_allclose(
        error.y, 100 * (shown.x.to_numpy() / shown.y.to_numpy() - 1), rtol=1e-6
    )


def test_frontiers_tell_looped_from_fixed_depth(simulate, paper_loss, tmp_path):
    frame = simulate(paper_loss, recurrences=(1, 2, 4))
    rows = parametric.frontiers(load.load(records.save(frame, tmp_path / "r.parquet"))).drawn
    best = rows[(rows.series == "looped") & (rows.kind == "points")]
    looped = frame[frame.mean_recurrence > 1]
    assert sorted(best.y) == sorted(looped.groupby("budget_flops").val_loss.min())
    assert len(rows[(rows.series == "fixed depth") & (rows.kind == "points")]) == 4


def test_test_time_figure_shows_the_largest_budgets_and_says_how_many(
    simulate, paper_loss, tmp_path
):
    frame = simulate(
        paper_loss,
        budgets=tuple(np.geomspace(1e18, 1e20, 11)),
        recurrences=(2, 4),
        loops=(1, 2, 4, 8),
    )
    found = test_time.fit_test_time(load.load(records.save(frame, tmp_path / "r.parquet")))
    drawing = sweeps.test_time(found)
    assert len(drawing.axes) == 9
    assert "9 largest budgets only" in drawing.caption


@pytest.fixture
def one_figure(monkeypatch):
    """One figure a source is enough for a page; rendering all fourteen takes most of its time."""
    monkeypatch.setattr(
        study.Study, "drawings", lambda self, *_, **__: [sweeps.isoflop(self.recurrence)]
    )


def recurrence_alone(source):
    return study.study(load.load(source), ("recurrence",))


def test_report_tells_sources_apart_and_needs_nothing_else(sweep, tmp_path, one_figure):
    sources = ("bundled:parcae-140m", sweep)
    out = write_report(
        map(recurrence_alone, sources), tmp_path / "new" / "report.html", "2026-11-25"
    )
    text = out.read_text()
    assert text.count("<section") == 2
    assert "not measured here" in text.split("<section")[1]
    assert "measured by the runs of this sweep" in text.split("<section")[2]
    assert load.load(sweep).sha256 in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # self-contained
    assert text.count('src="data:image/png;base64,') == 2
    assert "analysed separately on 2026-11-25" in text
    first = text.split("<section")[1]
    assert (
        "\u03b3_\u03bc = 0.396 [0.364, 0.427]" in first.partition("<img")[0]
    )  # the headline, on top


def test_report_is_the_same_bytes_twice(tmp_path, one_figure):
    studies = [recurrence_alone("bundled:parcae-140m")]
    assert render(studies, "2026-11-25") == render(studies, "2026-11-25")


def test_report_shows_every_problem(simulate, tmp_path, one_figure):
    rising = simulate(lambda mu, d, t, n: 3 + 0.02 * np.log(mu) ** 1.5)
    path = records.save(rising, tmp_path / "records.parquet")
    found = study.study(load.load(path), ("recurrence", "data-only"))
    found.refusals["chinchilla"] = "it has one size"
    text = render([found], "2026-11-25")
    problems = found.recurrence.result.problems
    assert len(problems) >= 3
    assert all(p.split(";")[0] in text for p in problems)
    assert "NOT VALID" in text
    assert "Not fitted: it has one size" in text


@pytest.mark.slow
def test_a_page_of_both_bundled_sources_takes_15_seconds(tmp_path):
    began = time.process_time()
    write_report(["bundled:parcae-140m", "bundled:nano-isoflop"], tmp_path / "report.html")
    assert time.process_time() - began < 15


@pytest.mark.slow
def test_sources_side_by_side_give_the_page_of_one_after_the_other(app, tmp_path, monkeypatch):
    sources, pages = ["bundled:parcae-140m", "bundled:nano-isoflop"], []
    for cores in (1, 2):
        monkeypatch.setattr(parallel, "usable_cpus", lambda n=cores: n)
        out = tmp_path / "report.html"
        done = CliRunner().invoke(
            app, ["report", *sources, "--law", "recurrence", "--out", str(out)]
        )
        pages.append((done.stdout, out.read_bytes()))
    assert pages[0] == pages[1]
    assert pages[0][0].count("]: gamma_mu ") == 2


def test_fit_prints_json_on_stdout_and_exits_by_validity(app, simulate, tmp_path):
    done = CliRunner().invoke(app, ["fit", "bundled:parcae-140m", "--law", "recurrence", "--json"])
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert data["valid"] is True
    assert data["problems"] == []
    assert {"name", "value", "ci_low", "ci_high"} <= set(data["params"][0])
    assert {"law", "objective"} <= set(data)
    rising = simulate(lambda mu, d, t, n: 3 + 0.02 * np.log(mu) ** 1.5)
    path = records.save(rising, tmp_path / "records.parquet")
    done = CliRunner().invoke(app, ["fit", str(path), "--law", "recurrence", "--json"])
    assert done.exit_code == 1
    data = json.loads(done.stdout)
    assert data["params"][0]["value"] is None
    assert data["valid"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--law", "recurrence"], "nowhere: no such file or folder"),
        (["bundled:parcae-140m", "--law", "recurence"], "did you mean 'recurrence'"),
        (["bundled:parcae-140m", "--law", "test-time"], "Map it with --columns T=COLUMN"),
        (["bundled:parcae-140m", "--law", "chinchilla"], "has the same variable in every row"),
        (["bundled:parcae-140m", "--law", "training", "--loss", "hubber"], "did you mean 'huber'"),
        (
            ["bundled:parcae-140m", "--law", "training", "--fix", "gamma=1"],
            "has no parameter 'gamma'",
        ),
        (
            ["bundled:parcae-140m", "--law", "training", "--fix", "x=a"],
            "cannot be read; write it like gamma=1",
        ),
        (
            ["bundled:parcae-140m", "--law", "recurrence", "--fix", "x=1"],
            "is fitted in closed form and takes none",
        ),
        (["bundled:parcae-140m", "--law", "training", "--delta", "0"], "--delta is 0.0"),
        (["bundled:parcae-140m", "--law", "recurrence", "--confidence", "95"], "between 0 and 1"),
        (
            ["bundled:parcae-140m", "--law", "recurrence", "--drop-highest", "36"],
            "--drop-highest 36",
        ),
    ],
)
def test_bad_input_is_one_sentence(app, arguments, message):
    done = CliRunner().invoke(app, ["fit", *arguments])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_gamma_can_be_held_and_is_then_no_parameter(app, sweep):
    arguments = [
        "fit",
        str(sweep),
        "--law",
        "unified",
        "--fix",
        "gamma=1",
        "--interval",
        "none",
        "--json",
    ]
    data = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert [p["name"] for p in data["params"]] == ["E", "X", "x", "Y", "y", "Z", "z"]
    assert "gamma = 1" in data["formula"]


def test_predict_optimal_and_judge_print_what_they_found(app):
    source = "bundled:parcae-140m"
    done = CliRunner().invoke(app, ["optimal", source, "--budget", "3.2e19", "--json"])
    data = json.loads(done.stdout)
    assert [v["name"] for v in data["values"]] == ["mu*", "D*"]
    assert data["inside"] is True
    at = ["--at", "mu=8,D=1.12e10", "--resamples", "50", "--interval", "none"]
    done = CliRunner().invoke(app, ["predict", source, "--law", "training", *at])
    assert "val_loss = 2.96" in done.stdout
    few = ["--starts", "2", "--loss", "log-lsq"]
    done = CliRunner().invoke(app, ["judge", source, "--law", "training", *few])
    assert "errors on a budget held out" in done.stdout
    assert "bias of the parabola" in done.stdout
    done = CliRunner().invoke(app, ["judge", source, "--law", "recurrence", "--json"])
    assert len(json.loads(done.stdout)["exponents without one budget"]) == 6


def test_plot_and_report_write_what_they_print(app, tmp_path):
    source = "bundled:parcae-140m"
    chosen = ["--only", "isoflop", "--only", "test-time"]
    done = CliRunner().invoke(app, ["plot", source, "--out", str(tmp_path / "figures"), *chosen])
    assert done.exit_code == 0
    assert len(done.stdout.split()) == 3
    assert all((tmp_path / "figures" / p.split("/")[-1]).is_file() for p in done.stdout.split())
    assert "test-time: not drawn" in done.stderr
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", source, "--law", "recurrence", "--out", str(out)])
    assert "gamma_mu 0.396" in done.stdout
    assert done.stdout.strip().endswith("report.html")
    assert out.read_text().count("<img") == 2


def test_a_verb_needs_no_other_room_than_its_own():
    assert tuple(command("plot").commands) == ("plot", "curves", "report")
    verbs = list(command().commands)
    assert len(verbs) == 30
    assert all(verb in command(verb).commands for verb in verbs)


def test_fit_does_not_load_what_it_does_not_need():
    code = (
        "import sys, analysis.api as r; r.fit_source('bundled:parcae-140m', 'recurrence');"
        "print([m for m in ('torch', 'ray', 'matplotlib', 'scipy.stats', 'jinja2') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
