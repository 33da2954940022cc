import numpy as np
import pytest

from analysis import api
from analysis.isoflop import bias, parabolas
from analysis.report import study
from analysis.report.html import write_report
from analysis.table import load as sources
from analysis.table import records

TRUTH = {"E": 2.662, "X": 522733.307, "x": 0.771, "Y": 25420.102, "y": 0.525}


@pytest.fixture
def load(simulate, paper_loss, tmp_path):
    """A table of noise-free runs from the paper's law on a grid of recurrences."""

    def make(**options):
        frame = simulate(paper_loss, **options)
        return sources.load(records.save(frame, tmp_path / "records.parquet"))

    return make


def notes(table):
    return bias.judged(parabolas.fit_recurrence(table)).result.notes


def test_a_grid_around_the_minimum_is_not_called_off_centre_and_a_shifted_one_is(load):
    true = bias.parabola_bias(TRUTH, load(budgets=(16e18,), recurrences=(2, 4, 8, 12)))
    optimum = true[0]["true_optimum"]
    around = tuple(round(optimum * f) for f in (0.4, 0.6, 1.0, 1.6, 2.5))
    above = tuple(round(optimum * f) for f in (0.9, 1.5, 2.2, 3.2))
    budgets = (9e18, 16e18, 28e18)
    assert not any("off-centre" in n for n in notes(load(budgets=budgets, recurrences=around)))
    found = [n for n in notes(load(budgets=budgets, recurrences=above)) if "off-centre" in n]
    assert found
    assert "to the lower end" in found[0]


def test_a_wide_grid_is_named_and_its_bias_is_what_the_law_says(load):
    table = load(budgets=(4e18, 8e18, 16e18), recurrences=(1, 2, 4, 8, 16, 32))
    found = bias.judged(parabolas.fit_recurrence(table)).result
    assert any("its ends differ by a factor of 32" in n for n in found.notes)
    rows = found.tables["parabola_bias"]
    for row in rows:
        # the runs are noise-free, so the vertex really is where the bias says it is
        own = next(
            p
            for p in found.tables["optima"]
            if p["axis"] == "mean_recurrence" and p["budget_flops"] == row["budget_flops"]
        )
        assert own["optimum"] == pytest.approx(row["vertex"], rel=1e-2)
        assert row["bias"] == pytest.approx(row["vertex"] / row["true_optimum"] - 1)
    large = [r for r in rows if abs(r["bias"]) > bias.BIASED]
    assert large
    said = [n for n in found.notes if "were the training law fitted to these runs true" in n]
    assert len(said) == len(large)
    assert f"{abs(large[0]['bias']):.0%}" in said[0] or "one loop" in said[0]


def test_where_the_training_law_cannot_be_fitted_the_bias_is_said_to_be_unknown(tmp_path):
    path = tmp_path / "points.csv"
    rows = [
        (c, mu, c / (4e8 + 8e7 * mu), 3 + 0.05 * (np.log(mu) - np.log(c / 1e18)) ** 2)
        for c in (2e18, 4e18, 8e18)
        for mu in (1, 2, 4, 8, 16)
    ]
    text = "\n".join(",".join(map(str, r)) for r in rows)
    path.write_text(f"budget,mu,D,loss\n{text}\n")
    result = api.fit_source(path, "recurrence")
    assert any("is not quantified" in n and "n_params_unrolled" in n for n in result.notes)
    assert "parabola_bias" not in result.tables


def test_the_report_shows_the_judgements(load, tmp_path, monkeypatch):
    monkeypatch.setattr(study.Study, "drawings", lambda self: [])
    laws = ("recurrence", "test-time", "training")
    made = study.study(load(loops=(1, 2, 4, 6, 8, 10, 12, 16)), laws)
    titles = list(made.judgements())
    assert "recurrence: exponents without one budget" in titles
    assert "training: errors on a budget held out" in titles
    assert "test-time: test-time forms, of 6 of the 24 curves" in titles
    text = write_report([made], tmp_path / "report.html").read_text()
    assert "Do they hold where they were not fitted?" in text
    assert all(t in text for t in titles)
