"""The real adaptive sweeps on the demo's task against its grid, from the losses that they left."""

import math

import pandas as pd
import pytest
import yaml

from benchmarks.adaptive_real import recorded, spec_of
from benchmarks.common import RESULTS
from sweeps.cli.sweep import load_plan
from sweeps.design.adaptive import planner_of

ROWS = pd.read_csv(RESULTS / "adaptive_real.csv")


def estimates(seed, tmp_path):
    """(the grid's, ours, runs of ours that were left out) at a seed; each is the newest that is recorded."""
    path = tmp_path / "adaptive.yaml"
    path.write_text(yaml.safe_dump(spec_of(seed, 0.5)))
    plan = load_plan(path)
    planner, done = planner_of(plan), recorded(plan, seed)
    found = {which: planner.estimate(runs) for which, runs in done.items()}
    for which, now in found.items():
        row = ROWS[(ROWS.seed == seed) & (ROWS.which == which)].iloc[-1]
        assert (now.value, now.low, now.high) == pytest.approx(
            (row.gamma_mu, row.low, row.high), abs=1e-3
        )
    return found["grid"], found["adaptive"], planner.left_out(done["adaptive"])


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_it_agrees_with_the_grid_for_half_of_its_flops(seed, tmp_path):
    grid, ours, left_out = estimates(seed, tmp_path)
    assert ours.flops <= 0.5 * grid.flops
    assert grid.low <= ours.value <= grid.high
    assert ours.low <= grid.value <= ours.high
    assert left_out == ()


def test_where_the_grid_cannot_tell_half_of_it_cannot_either(tmp_path):
    grid, ours, _ = estimates(3, tmp_path)
    for found in grid, ours:
        assert (found.low, found.high) == (-math.inf, math.inf)
