"""The real adaptive sweeps on the demo's task against its grid, from the losses that they left."""

import math

import pandas as pd
import pytest
import yaml

from benchmarks.adaptive_real import grid_of, known, spec_of
from benchmarks.common import RESULTS
from sweeps.cli.sweep import load_plan
from sweeps.design.adaptive import planner_of

RUNS = pd.read_csv(RESULTS / "adaptive_real_runs.csv")


def estimates(seed, tmp_path):
    """(the grid's, ours, runs of ours that were left out) at a seed."""
    path = tmp_path / "adaptive.yaml"
    path.write_text(yaml.safe_dump(spec_of(seed, 0.5)))
    plan = load_plan(path)
    planner = planner_of(plan)
    runs = RUNS[RUNS.seed == seed]
    grid = runs[runs.which == "grid"]
    done = known(plan, runs[runs.which == "adaptive"])
    theirs = known(plan, grid if len(grid) else grid_of(seed).frame)
    return planner.estimate(theirs), planner.estimate(done), planner.left_out(done)


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
