"""A spec with `design: adaptive` as the planner takes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.design import priors
from analysis.design.adaptive import Grid, Planner
from analysis.design.optimum import enclosed
from analysis.errors import InputError
from parcae_core.errors import UserError
from parcae_core.trial import Trial
from sweeps.decisions import decisions, end_of
from sweeps.design.forecasting import settings_of, size_of
from sweeps.design.plan import Plan
from sweeps.design.spec import AdaptiveSpec


def is_adaptive(plan: Plan) -> bool:
    """Whether a plan's trials are candidates; a spec shrunk by --smoke runs all of its few."""
    return isinstance(plan.spec, AdaptiveSpec) and plan.name == plan.spec.name


def planner_of(plan: Plan) -> Planner:
    """The planner of an adaptive plan; row r, replica k is the plan's trial r * replicas + k.

    Raises:
        UserError: a prior that is none, or one without an optimum at these budgets.
    """
    spec = plan.spec
    assert isinstance(spec, AdaptiveSpec), f"{spec.design} is not adaptive"
    first = plan.trials[:: len(spec.seeds)]
    size = size_of(first, plan.where)
    grid = Grid(size=size, **settings_of(first))
    try:
        prior = priors.read(spec.prior, spec.noise)
        return Planner(
            grid=grid,
            prior=prior,
            target=spec.target,
            total_flops=spec.total_flops,
            reach=spec.reach,
            budgets=enclosed(prior.values, size, grid.budget_flops),
            half=spec.half_width,
            most=len(spec.seeds),
        )
    except InputError as error:  # it speaks of an option, and this is a key
        raise UserError(f"{plan.where}: {str(error).removeprefix('--')}") from None


def chosen(folder: Path, plan: Plan, left: Sequence[Trial]) -> list[Trial]:
    """The candidates that were chosen; while the design has not ended, one more of those that are left.

    Its state, planned, is what says that the sweep goes on.
    """
    lines = decisions(folder)
    named = {line["trial_id"] for line in lines if "trial_id" in line}
    rest = [t for t in left if t.trial_id not in named]
    return [*(t for t in plan.trials if t.trial_id in named), *(() if end_of(lines) else rest[:1])]


def left_out_data(planner: Planner, done: list[tuple[int, float]]) -> list[dict[str, Any]]:
    """Runs that are no part of the fit, as plain data."""
    grid = planner.grid
    return [
        {
            "mean_recurrence": int(grid.mean_recurrence[run.row]),
            "budget_flops": float(grid.budget_flops[run.row]),
            "loss": run.loss,
            "expected": run.expected,
            "p": run.p,
        }
        for run in planner.left_out(done)
    ]
