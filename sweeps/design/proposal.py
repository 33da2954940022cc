"""A spec out of a budget: which runs make one quantity of the training law known best, by a prior alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.design.adaptive import Grid, Planner
from analysis.design.forecast import Forecast, Runs, forecast
from analysis.design.optimum import enclosed
from analysis.design.priors import Prior
from analysis.errors import InputError
from parcae_core.data.io import write_synced
from parcae_core.errors import UserError
from sweeps.design.forecasting import (
    apart,
    interval_words,
    looped_of,
    over_words,
    own_budgets,
    runs_of,
    settings_of,
    size_of,
)
from sweeps.design.plan import Plan, plan, short
from sweeps.design.sections import LADDER
from sweeps.design.spec import REACH, ListSpec, parse_spec
from sweeps.design.validation import read_mapping

_REPLICAS = 8  # most seeds of one setting
_DEEPER = 4.0  # times the deepest model of the spec that is followed
_KEPT = ListSpec.model_fields.keys() - {"design", "budgets_flops", "seeds", "base", "trials"}


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
    over: list[float]  # budgets over which an exponent is taken, for both
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
        return out + self.notes()

    def notes(self) -> list[str]:
        found = {"this design": self.forecast, "the spec's grid": self.grid_forecast}
        notes = [f"{what}: {note}" for what, f in found.items() if f and (note := apart(f))]
        if "@" not in self.forecast.name:
            notes.insert(0, f"{self.forecast.name} is taken {over_words(self.over)}")
        made = sum(t.own_flops(t.budget_rule) for t in self.plan.trials)
        if made < 0.99 * self.flops:
            notes.append(
                f"the design counts separate runs, and with trunks they cost {short(made)} FLOPs: "
                f"--flops {short(self.flops**2 / made)} would spend about {short(self.flops)}"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        return {
            "design": asdict(self.forecast),
            "flops": self.flops,
            "runs": len(self.plan.trials),
            "budgets_flops": self.over,
            "grid": self.grid_forecast and asdict(self.grid_forecast),
            "grid_flops": self.grid_flops,
            "grid_runs": self.grid_runs,
            "notes": self.notes(),
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
    return f"{what}: {n_runs} runs, {short(flops)} FLOPs: {f.name} {interval_words(asdict(f))}"


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
    asked = own_budgets(like.spec) or budgets
    over = enclosed(prior.values, size, asked)
    if limits.largest_flops is not None:
        budgets = [b for b in budgets if b <= limits.largest_flops]
    common = {k: v for k, v in read_mapping(Path(like.where)).items() if k in _KEPT}
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
    most = math.inf if limits.memory_bytes is None else limits.memory_bytes
    fits = [
        t.mean_backprop_depth > 1 and t.cost.memory.peak(1) <= most
        for t in _planned(common, trials, like).trials
    ]  # with gradient through one loop alone no fit of the recurrence keeps a run
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
    runs = Runs(size=size, **settings_of(found.trials))
    try:
        (ours,) = forecast(runs, prior, (target,), budgets=over)
    except InputError:
        if total_flops >= planner.bracket_flops:
            raise
        raise UserError(
            f"--flops {total_flops:g} buys no more than {len(runs)} of the runs that determine {target}; raise it to "
            f"{1.01 * planner.bracket_flops:.3g}."
        ) from None
    grid, flops = _forecast_of(like, prior, target, over)
    return Proposal(
        spec=common | {"design": "list", "budgets_flops": asked, "trials": chosen},
        plan=found,
        over=over.tolist(),
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
