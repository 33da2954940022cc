"""The real adaptive sweeps on the demo's task against its grid, from the losses that they left."""

import pandas as pd
import pytest
import yaml

from benchmarks.adaptive_real import grid_of, known, spec_of
from benchmarks.common import RESULTS
from sweeps.cli.sweep import load_plan
from sweeps.design.adaptive import planner_of

RUNS = pd.read_csv(RESULTS / "adaptive_real_runs.csv")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_agrees_with_the_grid_for_half_of_its_flops(seed, tmp_path):
    path = tmp_path / "adaptive.yaml"
    path.write_text(yaml.safe_dump(spec_of(seed, 0.5)))
    plan = load_plan(path)
    planner = planner_of(plan)
    done = known(plan, RUNS[RUNS.seed == seed])
    grid, ours = (planner.estimate(runs) for runs in (known(plan, grid_of(seed).frame), done))
    assert ours.flops <= 0.5 * grid.flops
    assert grid.low <= ours.value <= grid.high
    assert ours.low <= grid.value <= ours.high
    assert planner.left_out(done) == ()
