"""How an adaptive sweep's interval shrank: the figure, and its place on the page."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.errors import InputError
from analysis.figures.decisions import Decisions, interval
from analysis.report import study
from analysis.report.html import render
from analysis.table import load


def decision(n_runs: int | None, half: float | None, reason: str = "spread") -> dict:
    row = {"trial_id": "0f3a52c1b77e", "budget_flops": 1e11, "mean_recurrence": 4, "seed": 0}
    row |= {"reason": reason, "n_runs": n_runs, "half": half}
    if half is None:
        return row | {"flops": None, "value": None, "low": None, "high": None}
    return row | {"flops": 1e11 * n_runs, "value": 0.7, "low": 0.7 - half, "high": 0.7 + half}


FOUND = Decisions(
    source="runs/mine",
    target="gamma_mu",
    rows=(
        decision(None, None, "bracket"),
        decision(8, 0.5),
        decision(8, 0.5),  # decided together
        decision(12, 0.3),
        decision(20, 0.2, "end"),
    ),
    ended="the FLOPs are spent",
    wanted=0.1,
    at_once=(8e12, 0.1),
)


def test_the_figure_has_a_point_for_each_interval_and_what_all_candidates_would_give():
    rows = interval(FOUND).drawn
    own = rows[(rows.series == "this sweep") & (rows.kind == "points")]
    np.testing.assert_allclose(own.x, [8e11, 1.2e12, 2e12])
    np.testing.assert_allclose(own.y, [0.5, 0.3, 0.2])
    line = rows[rows.kind == "extrapolation"]
    np.testing.assert_allclose(line.y * np.sqrt(line.x), 0.1 * np.sqrt(8e12))  # as FLOPs^-1/2
    assert (line.x.min(), line.x.max()) == pytest.approx((8e11, 8e12))
    assert list(rows[rows.kind == "mark"].y) == [0.1]


def test_without_a_forecast_no_line_and_with_one_interval_no_figure():
    bare = interval(replace(FOUND, at_once=None, wanted=None))
    assert set(bare.drawn.kind) == {"points", "measured"}
    assert "Dashed" not in bare.caption
    few = replace(FOUND, rows=FOUND.rows[:3])
    with pytest.raises(InputError, match="1 intervals of gamma_mu so far; two are needed"):
        interval(few)
    table = load.load("bundled:parcae-140m")
    assert "interval" not in study.Study(table, ("recurrence",), decisions=few).figures()
    assert "interval" in study.Study(table, ("recurrence",), decisions=FOUND).figures()


def test_the_page_says_the_answer_first_and_each_choice_with_its_reason(monkeypatch):
    monkeypatch.setattr(study.Study, "drawings", lambda self, *_: [interval(FOUND)])
    table = load.load("bundled:parcae-140m")
    found = study.Study(table, ("recurrence",), decisions=FOUND)
    text = render([found], "2026-11-26")
    assert (
        "Adaptive sweep: \u03b3_\u03bc = 0.7 [0.5, 0.9] by 20 runs of 2e+12 FLOPs; finished: the FLOPs are spent."
        in text.partition("<img")[0]
    )
    assert text.count("<td>bracket</td>") == 1
    assert text.count("<td>spread</td>") == 3
    assert "How the runs were chosen" in text
    wide = replace(FOUND, rows=(*FOUND.rows[:-1], FOUND.rows[-1] | {"high": None, "half": None}))
    assert "0.7 [0.5, open] by 20 runs" in wide.headline()
    assert [r["n_runs"] for r in wide.known] == [8, 12]
    plain = render([study.Study(table, ("recurrence",), decisions=replace(FOUND, rows=()))], "x")
    assert "not determined yet" in plain
    assert "How the runs were chosen" not in plain
