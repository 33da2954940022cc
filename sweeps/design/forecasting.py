"""What trials will tell, and what those that have ended do tell: looped trials as `analysis.design.forecast` takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from parcae_core.accounting.flops import train_flops_per_token
from parcae_core.errors import UserError
from parcae_core.trial import Trial
from sweeps.decisions import estimate_data, half_of
from sweeps.design.plan import Plan, short
from sweeps.design.spec import AdaptiveSpec, ListSpec, SweepSpec

# Of an interval, by which simulation and Fisher information may differ before it is said
_OFF = 0.15
# Odd numbers of loops lie off the line by half a gradient step, and which are tried must not move an exponent
_EVEN = (128, 256)
_ENDS = ("simulated_low", "simulated_high", "low", "high")
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
    depths = {t.mean_recurrence for t in trials}
    if len(depths) < 2:
        raise UserError(
            f"{where}: every looped trial has mean_recurrence {min(depths)}; a forecast needs several values."
        )
    low, high = (_per_token(trials[0], mu, _with_gradient(trials, mu)) for mu in _EVEN)
    slope = (high - low) / (_EVEN[1] - _EVEN[0])
    return Size(
        n_params=n_params,
        n_params_core=core,
        flops_at_zero=low - slope * _EVEN[0],
        flops_per_loop=slope,
    )


def _with_gradient(trials: Sequence[Trial], mu: int) -> int:
    """mu_bwd at another number of loops, by the rule that these trials follow."""
    found = {t.mean_backprop_depth for t in trials}
    if len(found) == 1:
        return min(*found, mu)
    return mu if all(t.mean_backprop_depth == t.mean_recurrence for t in trials) else mu // 2


def _per_token(trial: Trial, mu: int, mu_bwd: int) -> float:
    """FLOPs per token of a trial's model with other loops, by its budget's rule."""
    assert trial.depth is not None, trial.trial_id
    depth = replace(trial.depth, mean_recurrence=mu, mean_backprop_depth=mu_bwd)
    return train_flops_per_token(trial.model, depth, trial.context, trial.budget_rule).total


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
    if at is None:
        at = _BEYOND * float(runs.budget_flops.max())
    elif at <= 0:
        raise InputError(f"--at is {at:g}; FLOPs above 0 are needed, like 1e20.")
    over = enclosed(prior.values, runs.size, own_budgets(plan.spec) or runs.budget_flops)
    found = forecast(runs, prior, ("gamma_mu", "gamma_D", f"mu@{at:g}"), budgets=over)
    return {
        "prior": prior.source,
        "noise": prior.noise,
        "noise_source": prior.noise_source,
        "n_runs": len(runs),
        "budgets_flops": over.tolist(),
        "intervals": [asdict(f) for f in found],
        "notes": [*(n for f in found if (n := apart(f))), *off_curve(looped_of(plan))],
    }


def own_budgets(spec: SweepSpec) -> list[float] | None:
    """The budgets over which a list's exponents are taken, where it names them; None: those of its runs."""
    return spec.budgets_flops if isinstance(spec, ListSpec) else None


def apart(f: Forecast) -> str:
    """A sentence where Fisher information misleads, or ""; of mu@C and loss@C logarithms are compared."""
    turn = np.log if "@" in f.name else float
    fisher, ends = (
        np.array([np.nan if e is None else turn(e) for e in pair])
        for pair in ((f.low, f.high), (f.simulated_low, f.simulated_high))
    )
    if np.isnan(ends).any() and np.array_equal(np.isnan(ends), np.isnan(fisher)):
        return ""  # the same end is open in both
    off = np.abs(ends - fisher).max() / (fisher[1] - fisher[0])
    if off <= _OFF:
        return ""
    far = "an end is open" if np.isnan(off) else f"an end differs by {off:.0%} of its width"
    return f"{f.name}: expect the simulated interval; Fisher information takes the law for linear over it, and {far}"


def over_words(budgets: Sequence[float]) -> str:
    """Over which budgets an exponent is taken."""
    return f"over {len(budgets)} budgets from {short(min(budgets))} to {short(max(budgets))} FLOPs"


def interval_words(f: dict[str, Any]) -> str:
    """A forecast, said: what to expect first."""
    ends = ["open" if f[k] is None else f"{f[k]:.4g}" for k in _ENDS]
    return f"{f['value']:.4g}  [{ends[0]}, {ends[1]}] to expect (simulated), [{ends[2]}, {ends[3]}] by Fisher information"


def off_curve(trials: Sequence[Trial]) -> list[str]:
    """Sentences about numbers of loops that no recurrence fit keeps (`analysis.isoflop.parabolas.without_shallow`)."""
    shallow = sorted({t.mean_recurrence for t in trials if t.mean_backprop_depth == 1})
    apart = "`parcae fit --law recurrence` and `parcae status` leave such runs out, and here they count as any other"
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
        f"expected 95 % intervals by the training law, as `parcae status` estimates, of {data['n_runs']} looped runs; "
        f"prior {data['prior']}, noise {data['noise']:.2%} of the loss ({data['noise_source']}); exponents "
        f"{over_words(data['budgets_flops'])}"
    ]
    for f in data["intervals"]:
        kind, _, at = f["name"].partition("@")
        name = f"{kind}* at {short(float(at))} FLOPs" if at else kind
        lines.append(f"  {name:<22} {interval_words(f)}")
    return [*lines, *data["notes"]]


def estimate_now(
    ended: Sequence[tuple[Trial, float]], over: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """gamma_mu by the training law fitted to trials that have ended, with its profile interval.

    As an adaptive sweep writes it down at each decision, and cheap enough for every look at a sweep.

    Args:
        ended: trials with their losses, at their own number of loops.
        over: budgets over which an exponent is taken; None: those of the trials.

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
        budgets = enclosed(fitted.params, runs.size, over or runs.budget_flops)
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
        [found] = forecast(runs, prior, (spec.target,), budgets=over)
    except (InputError, UserError):
        return None
    ends = {"low": found.simulated_low, "high": found.simulated_high}
    half = half_of({"target": spec.target, **ends})
    return None if half is None else (float(runs.budget_flops.sum()), half)
