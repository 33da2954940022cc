"""A spec out of a budget: which runs make one quantity of the training law known best, by a prior alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.design.adaptive import Grid, Planner
from analysis.design.forecast import Forecast, forecast
from analysis.design.optimum import enclosed
from analysis.design.priors import Prior
from parcae_core.data.io import write_synced
from parcae_core.errors import UserError
from sweeps.design.forecasting import looped_of, off_curve, runs_of, settings_of, size_of
from sweeps.design.plan import Plan, plan, short
from sweeps.design.sections import LADDER
from sweeps.design.spec import REACH, parse_spec
from sweeps.design.validation import read_mapping

_REPLICAS = 8  # most seeds of one setting
_DEEPER = 4.0  # times the deepest model of the spec that is followed
_VARIED = ("design", "budgets_flops", "mean_recurrence", "prior", "seeds", "base", "axes", "trials")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What no run may exceed."""

    largest_flops: float | None = None
    memory_bytes: float | None = None  # peak of a step with one sequence at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A spec, as a mapping, beside the grid of the spec that it follows."""

    spec: dict[str, Any]
    plan: Plan
    forecast: Forecast
    flops: float
    grid_forecast: Forecast | None  # None: too few runs, or runs that do not determine the law
    grid_flops: float
    grid_runs: int

    def lines(self) -> list[str]:
        """For people."""
        out = [_line("this design", self.forecast, len(self.plan.trials), self.flops)]
        if self.grid_forecast is None:
            out.append("the spec's own grid does not determine the law by itself")
        else:
            out.append(
                _line("the spec's grid", self.grid_forecast, self.grid_runs, self.grid_flops)
            )
        return out + off_curve(self.plan.trials)

    def to_dict(self) -> dict[str, Any]:
        return {
            "design": asdict(self.forecast),
            "flops": self.flops,
            "runs": len(self.plan.trials),
            "grid": self.grid_forecast and asdict(self.grid_forecast),
            "grid_flops": self.grid_flops,
            "grid_runs": self.grid_runs,
            "notes": off_curve(self.plan.trials),
            "spec": self.spec,
        }

    def write(self, path: Path, command: str, like: Path) -> None:
        """The spec file; a corpus beside the spec that it follows is named from here.

        Raises:
            UserError: if the file is there.
        """
        if path.exists():
            raise UserError(f"{path}: is there already; give another --out, or remove it.")
        made_by = command.replace("\n", " ")
        head = [f"# Made by: {made_by}", *(f"# {line}" for line in self.lines())]
        spec, corpus = self.spec, self.spec["data"]["corpus"]
        if isinstance(corpus, str) and (like.parent / corpus).exists():
            there = os.path.relpath(like.parent / corpus, path.parent)
            spec = spec | {"data": spec["data"] | {"corpus": there}}
        text = yaml.safe_dump(spec, sort_keys=False, default_flow_style=None, width=100)
        write_synced(path, "\n".join(head) + "\n\n" + text)


def _line(what: str, f: Forecast, n_runs: int, flops: float) -> str:
    simulated = (
        f"; [{f.simulated_low:.4g}, {f.simulated_high:.4g}] simulated"
        if f.simulated_low is not None
        else ""
    )
    return (
        f"{what}: {n_runs} runs, {short(flops)} FLOPs: {f.name} {f.value:.4g} [{f.low:.4g}, {f.high:.4g}] "
        f"by Fisher information{simulated}"
    )


def propose(
    like: Plan, prior: Prior, target: str, total_flops: float, limits: Limits, name: str
) -> Proposal:
    """The runs to make, as a `list` spec with the other keys of the spec that it follows.

    Raises:
        UserError: FLOPs that buy nothing, or limits that leave nothing.
        InputError: a target that the law does not have, or a prior without an optimum here.
    """
    looped = looped_of(like)
    size = size_of(looped, like.where)
    budgets = sorted({float(t.budget_flops) for t in looped if t.budget_flops is not None})
    over = enclosed(prior.values, size, budgets)
    if limits.largest_flops is not None:
        budgets = [b for b in budgets if b <= limits.largest_flops]
    common = {k: v for k, v in read_mapping(Path(like.where)).items() if k not in _VARIED}
    common["name"] = name
    deepest = max(t.mean_recurrence for t in looped) * _DEEPER
    depths = [n for n in (2, *LADDER) if n <= deepest]
    steps = like.spec.min_steps * looped[0].batch_tokens
    trials = [
        {"mean_recurrence": mu, "budget_flops": b}
        for b in budgets
        for mu in depths
        if b / size.flops_per_token(mu + 1) >= steps
    ]
    candidates = _planned(common, trials, like)
    if limits.memory_bytes is not None:
        fits = [t.cost.memory.peak(1) <= limits.memory_bytes for t in candidates.trials]
        trials = [t for t, fit in zip(trials, fits, strict=True) if fit]
        candidates = _planned(common, trials, like)
    cheapest = min(t["budget_flops"] for t in trials)
    if total_flops < cheapest:
        raise UserError(
            f"--flops {total_flops:g} buys nothing: the cheapest run costs {cheapest:g}; raise it."
        )
    planner = Planner(
        grid=Grid(size=size, **settings_of(candidates.trials)),
        prior=prior,
        target=target,
        total_flops=total_flops,
        reach=REACH,
        budgets=over,
        most=_REPLICAS,
    )
    counts = planner.at_once()
    chosen = [trials[r] | {"seeds": list(range(counts[r]))} for r in sorted(counts)]
    found = _planned(common, chosen, like)
    grid, flops = _forecast_of(like, prior, target, over)
    (ours,) = forecast(runs_of(looped_of(found), found.where), prior, (target,), budgets=over)
    return Proposal(
        spec=common | {"design": "list", "trials": chosen},
        plan=found,
        forecast=ours,
        flops=float(sum(t.budget_flops or 0.0 for t in found.trials)),
        grid_forecast=grid,
        grid_flops=flops,
        grid_runs=len(looped),
    )


def _planned(common: dict[str, Any], trials: Sequence[dict[str, Any]], like: Plan) -> Plan:
    if not trials:
        raise UserError(
            f"{like.where}: no setting is left within the limits; raise --largest or --memory, or lower the "
            "spec's min_steps."
        )
    spec = parse_spec(common | {"design": "list", "trials": list(trials)}, like.where)
    return plan(spec, like.trials[0].data, where=like.where)


def _forecast_of(like: Plan, prior: Prior, target: str, over: np.ndarray):
    runs = runs_of(looped_of(like), like.where)
    flops = float(runs.budget_flops.sum())
    try:
        return forecast(runs, prior, (target,), budgets=over)[0], flops
    except ValueError:  # too few runs, or runs that do not determine the law
        return None, flops
