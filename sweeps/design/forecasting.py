"""What trials will tell, and what those that have ended do tell: looped trials as `analysis.design.forecast` takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import stdtrit

from analysis.design import priors
from analysis.design.adaptive import Estimate
from analysis.design.forecast import Forecast, Runs, forecast
from analysis.design.optimum import LAW, Size, enclosed, quantities
from analysis.design.priors import Prior
from analysis.design.profile import profiled
from analysis.errors import InputError
from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import fit
from analysis.fitting.options import FitOptions
from parcae_core.errors import UserError
from parcae_core.trial import Trial
from sweeps.decisions import estimate_data, half_of
from sweeps.design.plan import Plan, short
from sweeps.design.spec import AdaptiveSpec

# Of an interval, by which simulation and Fisher information may differ before it is said
_OFF = 0.15
_BEYOND = 4.0  # times the largest budget: where mu* is forecast, if nothing else is asked for


def size_of(trials: Sequence[Trial], where: str) -> Size:
    """What loops cost at the one model size of these trials, by their budget's rule.

    Raises:
        UserError: models of different sizes, or a single number of loops.
    """
    sizes = {(t.cost.n_params, t.cost.n_params_core) for t in trials}
    if len(sizes) != 1:
        raise UserError(
            f"{where}: the looped trials have {len(sizes)} model sizes; a forecast is for one size."
        )
    ((n_params, core),) = sizes
    mu = np.array([t.mean_recurrence for t in trials], dtype=float)
    per_token = [t.cost.train_flops[t.budget_rule] / t.n_tokens for t in trials]
    if len(set(mu)) < 2:
        raise UserError(
            f"{where}: every looped trial has mean_recurrence {mu[0]:g}; a forecast needs several values."
        )
    slope, base = np.polyfit(mu, per_token, 1)
    return Size(n_params=n_params, n_params_core=core, flops_at_zero=base, flops_per_loop=slope)


def looped_of(plan: Plan) -> list[Trial]:
    """The looped trials of a plan that have a budget.

    Raises:
        UserError: none has.
    """
    trials = [t for t in plan.trials if t.mean_recurrence > 1 and t.budget_flops is not None]
    if not trials:
        raise UserError(
            f"{plan.where}: no looped trial has a budget_flops, and a forecast of mu* needs budgets; "
            "give an isoflop spec."
        )
    return trials


def runs_of(trials: Sequence[Trial], where: str) -> Runs:
    """Looped trials as the forecast takes them; UserError where `size_of` fails."""
    return Runs(size=size_of(trials, where), **settings_of(trials))


def settings_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """Trials in their order as `Runs` and `Grid` take them."""
    return {
        "mean_recurrence": np.array([t.mean_recurrence for t in trials], dtype=float),
        "budget_flops": np.array([t.budget_flops for t in trials], dtype=float),
        "columns": {
            "n_params_unrolled": np.array([t.cost.n_params_unrolled for t in trials], dtype=float),
            "n_tokens": np.array([t.n_tokens for t in trials], dtype=float),
        },
    }


def forecast_data(plan: Plan, prior: Prior, at: float | None = None) -> dict[str, Any]:
    """The forecast of a plan as plain data.

    Args:
        at: budget in FLOPs for which mu* is forecast; None: four times the largest of the plan.
    """
    runs = runs_of(looped_of(plan), plan.where)
    at = at or _BEYOND * float(runs.budget_flops.max())
    found = forecast(runs, prior, ("gamma_mu", "gamma_D", f"mu@{at:g}"))
    return {
        "prior": prior.source,
        "noise": prior.noise,
        "noise_source": prior.noise_source,
        "n_runs": len(runs),
        "intervals": [asdict(f) for f in found],
        "notes": [note for f in found if (note := _apart(f))],
    }


def _apart(found: Forecast) -> str:
    assert found.simulated_high is not None, found.name
    assert found.simulated_low is not None, found.name
    ratio = (found.simulated_high - found.simulated_low) / (found.high - found.low)
    if abs(ratio - 1) <= _OFF:
        return ""
    return (
        f"{found.name}: simulated intervals are {ratio:.2f} times those by Fisher information: the law is far "
        "from linear over them, and these runs hardly determine it"
    )


def off_curve(trials: Sequence[Trial]) -> list[str]:
    """Sentences about numbers of loops that no recurrence fit keeps (`analysis.isoflop.parabolas.without_shallow`)."""
    shallow = sorted({t.mean_recurrence for t in trials if t.mean_backprop_depth == 1})
    apart = "`parcae fit --law recurrence` leaves such runs out, and here they count as any other"
    out = []
    if 1 in shallow:
        out.append(
            f"mean_recurrence 1 is the fixed-depth Transformer, another architecture; {apart}. Leave it out"
        )
    if looped := ", ".join(str(mu) for mu in shallow if mu > 1):
        out.append(
            f"mean_recurrence {looped}: with gradient through one loop alone (mean_backprop_depth 1) a model hardly "
            f"learns to loop; {apart}. Leave {looped} out, or let depth.mean_backprop_depth be 2"
        )
    return out


def forecast_lines(data: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = [
        f"expected 95 % intervals of {data['n_runs']} looped runs; prior {data['prior']}, noise "
        f"{data['noise']:.2%} of the loss ({data['noise_source']})"
    ]
    for f in data["intervals"]:
        kind, _, at = f["name"].partition("@")
        name = f"{kind}* at {short(float(at))} FLOPs" if at else kind
        lines.append(
            f"  {name:<22} {f['value']:.4g}  [{f['low']:.4g}, {f['high']:.4g}] by Fisher information, "
            f"[{f['simulated_low']:.4g}, {f['simulated_high']:.4g}] simulated"
        )
    return [*lines, *data["notes"]]


def estimate_now(ended: Sequence[tuple[Trial, float]]) -> dict[str, Any] | None:
    """gamma_mu by the training law fitted to trials that have ended, with its profile interval.

    As an adaptive sweep writes it down at each decision, and cheap enough for every look at a sweep.

    Args:
        ended: trials with their losses, at their own number of loops.

    Returns:
        None where the trials do not determine the law, or follow more than one: other models, texts, optimisers.
    """
    target = "gamma_mu"
    looped = [(t, loss) for t, loss in ended if t.budget_flops and t.mean_backprop_depth > 1]
    if len(looped) <= len(LAW.params) + 1 or len({_kind(t) for t, _ in looped}) > 1:
        return None
    trials, losses = [t for t, _ in looped], np.array([loss for _, loss in looped])
    try:
        runs = runs_of(trials, "")
        options = FitOptions(loss="log-lsq", interval="none")
        fitted = fit(Dataset.of(runs.columns, losses), LAW, options)
        budgets = enclosed(fitted.params, runs.size, runs.budget_flops)
    except (InputError, UserError):
        return None
    dof = len(looped) - len(LAW.params)
    squares = float(fitted.log_residuals @ fitted.log_residuals)
    noise = max(float(np.sqrt(squares / dof)), 1e-12)
    (found,) = quantities((target,), fitted.params, runs.size, budgets)
    limit = float(stdtrit(dof, 0.975)) ** 2
    about = (target, runs.size, budgets, limit, [len(looped)])
    low, high = profiled(fitted.objective, fitted.theta, noise, *about)
    flops = float(runs.budget_flops.sum())
    now = Estimate(value=found.value, low=low, high=high, n_runs=len(looped), flops=flops)
    return estimate_data(target, now)


def _kind(trial: Trial) -> str:
    """What trials of one law have in common: all but loops, length and seeds."""
    varied = ("depth", "n_steps", "seed", "data_seed", "evaluation")
    return json.dumps({k: v for k, v in trial.identity().items() if k not in varied})


def candidates_at_once(trials: Sequence[Trial], spec: AdaptiveSpec) -> tuple[float, float] | None:
    """FLOPs of every candidate of an adaptive sweep run once, and half the interval that its prior expects of them.

    Returns:
        None where the prior cannot be read any more, or no such interval follows.
    """
    once = [t for t in trials if t.seed == spec.seeds[0]]
    try:
        runs, prior = runs_of(once, spec.name), priors.read(spec.prior, spec.noise)
        over = enclosed(prior.values, runs.size, runs.budget_flops)
        [found] = forecast(runs, prior, (spec.target,), budgets=over, simulations=0)
    except (InputError, UserError):
        return None
    half = half_of({"target": spec.target, "low": found.low, "high": found.high})
    return None if half is None else (float(runs.budget_flops.sum()), half)
