"""The best setting for a budget: along lines of minima, or along the budget by a law."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from analysis import prediction
from analysis.errors import InputError
from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.result import Param
from analysis.isoflop import parabolas
from analysis.laws import library
from analysis.laws.law import Law
from analysis.prediction import LOSS, MU_GRID, Answer
from analysis.table import load, numbers
from analysis.table.columns import written
from analysis.table.load import Table

_LEAST = 6e8  # FLOPs


def optimal(
    table: Table, budget: float, law: str | Law = "recurrence", over: str | None = None, **options
) -> Answer:
    """The best setting for a compute budget (FLOPs, by the rule of the source).

    Args:
        law: "recurrence" reads mu* and D* from the power laws of the minima and "isoflop" N* and D*;
            "training" minimises the law along the budget with the measured FLOPs per token of each
            mu; a law in N and D alone is minimised along C = 6 N D.
        over: the axis of `isoflop`, N without it.

    Raises:
        InputError: another law, or minima from which no exponent follows.
    """
    if not 0 < budget < np.inf:
        raise InputError(f"--budget is {budget}; FLOPs above 0 are needed, like 1e20.")
    if law in ("recurrence", "isoflop"):
        axis = "mu" if law == "recurrence" else over or "N"
        return _by_lines(table, budget, options.get("confidence", 0.95), axis)
    law = library.get(law) if isinstance(law, str) else law
    if set(law.columns) == {"n_params", "n_tokens"}:
        return _by_size(table, budget, law, options)
    if set(law.columns) == {"n_params_unrolled", "n_tokens"}:
        return _by_law(table, budget, law, options)
    raise InputError(
        f"--law {law.name!r}: an optimum follows from recurrence, isoflop, training, or a law in N and D alone."
    )


def _by_size(table: Table, budget: float, law: Law, options: dict) -> Answer:
    """N* and D* of a law in N and D, minimised along C = 6 N D."""
    n_resamples = options.pop("n_resamples", 500)
    fitted = fit_table(table, law, **options)
    measured = fitted.dataset.columns
    _refuse_other_cost(fitted.dataset.table)
    if budget < _LEAST:
        raise InputError(
            f"--budget is {budget:g}; {_LEAST:g} FLOPs are 10,000 parameters on 10,000 tokens, and no law of "
            "language models reaches below. Give more."
        )

    def along(log_n):
        n = np.exp(np.asarray(log_n, dtype=float))
        return {"n_params": n, "n_tokens": budget / (6 * n)}

    coarse = np.linspace(np.log(1e3), np.log(budget / 6e3), 400)

    def best(params) -> tuple[float, float]:
        """(log N*, loss); log N* is infinite where the law does not turn."""
        loss = law.predict(params, along(coarse))
        i = int(np.argmin(loss))
        if i in (0, len(coarse) - 1):
            return -np.inf if i == 0 else np.inf, float(loss[i])
        found = minimize_scalar(
            lambda u: float(law.predict(params, along([u]))[0]),
            bounds=(coarse[i - 1], coarse[i + 1]),
            method="bounded",
            options={"xatol": 1e-9},
        )
        return float(found.x), float(found.fun)

    middle, loss = best(fitted.params)
    if np.isinf(middle):
        raise InputError(
            f"{table.source}: along 6 N D = {budget:.3g} the fitted {law.name} law has no minimum: it favours "
            "ever larger or ever smaller models. Fit more sizes per budget."
        )
    draws = prediction.over(fitted.resamples(n_resamples), best)
    n_low, n_high = (float(np.exp(v)) for v in prediction.ends(fitted, draws[:, 0]))
    n = float(np.exp(middle))
    d = budget / (6 * n)
    return _best_along(
        fitted,
        f"parameters and tokens at {budget:.4g} FLOPs, by the {law.name} law and C = 6 N D",
        {
            "N*": (n, n_low, n_high, "parameters"),
            "D*": (d, budget / (6 * n_high), budget / (6 * n_low) if n_low else np.inf, "tokens"),
            "loss": (loss, *_ends_of_loss(fitted, draws[:, 1], np.isinf(draws[:, 0])), LOSS),
        },
        prediction.outside(fitted, {"n_params": n, "n_tokens": d}),
        (budget, 6 * measured["n_params"] * measured["n_tokens"]),
        n_resamples,
    )


def _ends_of_loss(fitted: Fit, losses: np.ndarray, falling: np.ndarray) -> tuple[float, float]:
    """Of the loss at the optimum; a resample whose law falls on beyond the grid bounds it from above alone."""
    low, _ = prediction.ends(fitted, np.where(falling, -np.inf, losses))
    return low, prediction.ends(fitted, losses)[1]


def _best_along(
    fitted: Fit,
    what: str,
    values: dict[str, tuple[float, float, float, str]],
    notes: list[str],
    spent: tuple[float, np.ndarray],
    n_resamples: int,
) -> Answer:
    """The answer of a minimum along a budget.

    Args:
        values: of each quantity its value, the ends of its interval, and its unit.
        spent: the budget, and what the rows spent.
    """
    budget, measured = spent
    if not measured.min() * 0.99 <= budget <= measured.max() * 1.01:
        notes.append(
            f"{budget:.3g} FLOPs lies outside the measured {measured.min():.3g} to {measured.max():.3g}"
        )
    return Answer(
        question=f"compute-optimal {what}",
        values=tuple(
            Param(name=name, value=value, ci_low=_open(low), ci_high=_open(high), unit=unit)
            for name, (value, low, high, unit) in values.items()
        ),
        inside=not notes,
        interval_method=f"{prediction.resampling(fitted, n_resamples)}, propagated through the minimum",
        fit=fitted.result,
        notes=tuple(notes),
    )


def _open(end: float) -> float | None:
    return None if np.isinf(end) else end


def _refuse_other_cost(table: Table) -> None:
    """C = 6 N D is assumed; FLOPs or budgets in the table that are far from it are counted otherwise."""
    frame = table.frame
    for name in ("train_flops", "budget_flops"):
        if name not in frame:
            continue
        spent = numbers.floats(frame[name])
        ratio = float((spent / (6 * frame.n_params * frame.n_tokens)).median())
        if 0.8 < ratio < 1.25 or np.isnan(ratio):
            continue
        kept = {n: c for n, c in table.columns.items() if n not in ("train_flops", "budget_flops")}
        raise InputError(
            f"{table.source}: {table.called(name)} is {ratio:.3g} times 6 N D, so an optimum along 6 N D would not be "
            "one of this count. Use --law isoflop --over N, or leave it out and state the budget as 6 N D: "
            f"{written(kept)}."
        )


def _by_lines(table: Table, budget: float, confidence: float, over: str) -> Answer:
    found = parabolas.fit_isoflop(table, over, confidence)
    if not found.lines:
        raise InputError(f"{table.source}: {'; '.join(found.result.problems)}.")
    values, notes = [], []
    for axis in dict.fromkeys(p.axis for p in found.parabolas):
        letter, unit = parabolas.axis_words(axis)
        name = f"{letter}*"
        if axis not in found.lines:
            notes.append(f"no {name}: its exponent does not follow")
            continue
        line = found.lines[axis]
        middle, low, high = (float(v[0]) for v in line.predict(np.array([budget])))
        values.append(Param(name=name, value=middle, ci_low=low, ci_high=high, unit=unit))
        if not line.x_low <= budget <= line.x_high:
            notes.append(
                f"{budget:.3g} FLOPs lies outside the {line.x_low:.3g} to {line.x_high:.3g} whose {name} is measured"
            )
    return Answer(
        question=f"compute-optimal {' and '.join(v.name for v in values)} at {budget:.4g} FLOPs",
        values=tuple(values),
        inside=not notes,
        interval_method="Student t of the power law's line",
        fit=found.result,
        notes=tuple(notes),
    )


def _by_law(table: Table, budget: float, law: Law, options: dict) -> Answer:
    # train_flops is asked for first, so that FLOPs per token can be read from the same rows
    table = load.need(table, ("mean_recurrence", "train_flops", *law.columns), "training")
    cost = prediction.flops_per_token(table)
    total, core = prediction.sizes(table)
    n_resamples = options.pop("n_resamples", 500)
    fitted = fit_table(table, law, **options)

    def along(mu):
        return {"n_params_unrolled": total + (mu - 1) * core, "n_tokens": budget / cost(mu)}

    grid = along(MU_GRID)
    i = int(fitted.predict(grid).argmin())
    if i == len(MU_GRID) - 1:
        raise InputError(
            f"{table.source}: along {budget:.3g} FLOPs the fitted law still falls at mu = {MU_GRID[-1]:g}, so no "
            "optimum follows. Ask for a smaller budget."
        )
    best = float(MU_GRID[i])
    losses = prediction.over(fitted.resamples(n_resamples), lambda p: fitted.predict(grid, p))
    falling = losses.argmin(axis=1) == len(MU_GRID) - 1
    mu_low, mu_high = prediction.ends(
        fitted, np.where(falling, np.inf, MU_GRID[losses.argmin(axis=1)])
    )
    d_low, d_high = budget / cost(mu_high), budget / cost(mu_low)
    loss = float(fitted.predict(along(np.array([best])))[0])
    table = fitted.dataset.table
    low, high = table.frame.mean_recurrence.min(), table.frame.mean_recurrence.max()
    notes = []
    if not low <= best <= high:
        notes.append(f"mu* lies outside the measured {low:g} to {high:g} loops")
    return _best_along(
        fitted,
        f"mean recurrence and tokens at {budget:.4g} FLOPs, by the training law",
        {
            "mu*": (best, mu_low, mu_high, "loops"),
            "D*": (float(budget / cost(best)), float(d_low), float(d_high), "tokens"),
            "loss": (loss, *_ends_of_loss(fitted, losses.min(axis=1), falling), LOSS),
        },
        notes,
        (budget, table.frame.train_flops.to_numpy(float)),
        n_resamples,
    )
