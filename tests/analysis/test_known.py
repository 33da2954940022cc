"""Losses beside a known floor: what is compared, pooled and drawn."""

import json

import pandas as pd
import pytest

from analysis import known
from analysis.errors import InputError
from analysis.figures import known as figures
from analysis.table.load import Table

FLOORS = json.dumps({"1": 0.5, "2": 1.0, "9": 1.5, "10": 1.5})


def row(budget, mu, n_loops, loss, *, by_gap=(), seed=0):
    return {
        "budget_flops": budget,
        "mean_recurrence": mu,
        "n_loops": n_loops,
        "architecture": "parcae" if mu > 1 else "transformer",
        "val_loss": loss,
        "seed": seed,
        "loss_floor": 1.0,
        "floor_by_label": FLOORS,
        "val_loss_by_label": json.dumps(dict(by_gap)),
    }


@pytest.fixture
def table():
    gaps = {"1": [10, 0.6], "2": [5, 1.0], "9": [1, 2.5], "10": [3, 1.9]}
    rows = [
        row(1e11, 1, 1, 1.4, by_gap=gaps.items()),
        row(1e11, 1, 1, 1.6, seed=1, by_gap=gaps.items()),
        row(1e11, 4, 4, 1.3, by_gap=gaps.items()),
        row(1e11, 4, 4, 1.5, seed=1, by_gap={"1": [30, 0.5]}.items()),
        row(1e11, 4, 32, 1.1, by_gap=gaps.items()),
        row(1e11, 8, 8, 1.2),
        row(1e11, 8, 8, 1.8, seed=1),
        row(2e11, 8, 8, 1.2),  # no fixed-depth model of this budget
    ]
    return Table(frame=pd.DataFrame(rows), source="made up", kind="records", origin="a test")


def test_loops_against_fixed_depth_are_means_over_seeds(table):
    [found] = known.equal_flops(table)
    assert (found.budget_flops, found.mean_recurrence) == (1e11, 4)
    assert found.fixed_loss == pytest.approx(1.5)
    assert found.looped_loss == pytest.approx(1.4)  # read out at T = mu, not beyond
    assert found.gain == pytest.approx(0.1)
    assert found.share == pytest.approx(0.2)  # of the 0.5 nats above the floor


def test_losses_by_gap_lie_above_their_floors_and_are_pooled_by_tokens(table):
    found = known.by_gap(table, 1e11, 4).set_index(["n_loops", "gap"])
    assert found.loc[(4, 1), "excess"] == pytest.approx((10 * 0.1 + 30 * 0.0) / 40)
    assert found.loc[(4, 10), "n_tokens"] == 4  # gaps 9 and 10
    assert found.loc[(4, 10), "excess"] == pytest.approx((1 * 1.0 + 3 * 0.4) / 4)
    with pytest.raises(InputError, match="no run at 1e\\+11 FLOPs and mean_recurrence=5"):
        known.by_gap(table, 1e11, 5)


def test_text_has_no_floor_and_no_figures_of_one(table):
    text = Table(
        frame=table.frame.drop(columns="loss_floor"), source="text", kind="records", origin="a test"
    )
    assert not known.has_floor(text)
    assert known.equal_flops(text)[0].share is None
    with pytest.raises(InputError, match="no losses by gap"):
        known.by_gap(text, 1e11, 4)


def test_the_figures_draw_what_was_computed(table):
    drawn = figures.equal_flops(table).drawn
    assert drawn[drawn.kind == "known"].y.unique() == [1.0]
    assert set(drawn.series) == {"fixed depth", "looped", "floor"}
    drawn = figures.loss_by_gap(table).drawn
    assert set(drawn.series) == {"T = 4", "T = 32", "fixed depth"}
