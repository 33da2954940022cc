"""What a fit is for: the loss at a setting, the best setting for a budget, the loops for a loss.

Every answer carries an interval propagated through the fit and says whether it lies inside what was
measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.optimize import minimize_scalar

from analysis.errors import InputError
from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.intervals import tail_of
from analysis.fitting.result import FitResult, Param, frame_of, html_of, interval
from analysis.laws import library
from analysis.table import load, numbers
from analysis.table.columns import info, written

if TYPE_CHECKING:
    from analysis.laws.law import Law
    from analysis.table.load import Table

MU_GRID = np.geomspace(1.0, 1024.0, 2000)
_LOSS = "nats per token"
_LEAST = 6e8  # FLOPs


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Numbers with intervals, the fit behind them, and whether they are extrapolated."""

    question: str
    values: tuple[Param, ...]
    inside: bool
    interval_method: str
    fit: FitResult
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        return self.fit.valid

    def to_json(self) -> str:
        data = asdict(self) | {"valid": self.valid, "fit": json.loads(self.fit.to_json())}
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False)

    def to_frame(self):
        """The numbers as a pandas table."""
        return frame_of(self.values)

    def _repr_html_(self) -> str:
        from html import escape

        place = "" if self.inside else " (extrapolated)"
        said = "".join(f"<p>{escape(n)}</p>" for n in self.notes)
        return f"<p>{escape(self.question)}{place}</p>{html_of(self.values)}{said}"

    def report(self) -> str:
        lines = [self.question]
        for v in self.values:
            ends = "" if v.ci_low is None and v.ci_high is None else f"  {interval(v)}"
            lines.append(
                f"  {v.name} = {v.value:.5g}{ends} {v.unit if v.unit != '1' else ''}".rstrip()
            )
        lines.append("  inside what was measured" if self.inside else "  EXTRAPOLATED")
        lines += [f"  {n}" for n in self.notes]
        lines.append(f"  {self.fit.confidence:.0%} intervals: {self.interval_method}")
        lines.append("")
        return "\n".join(lines) + self.fit.report()

    __str__ = report


def predict(
    table: Table, law: str | Law, at: dict[str, float], n_resamples: int = 500, **options
) -> Answer:
    """The law's target at one setting.

    Args:
        at: values of the law's columns, or of what they follow from (mean_recurrence for N(mu)).
        options: of `FitOptions`.

    Raises:
        InputError: a column without a value, or a law that predicts nothing by itself.
    """
    law = library.get(law) if isinstance(law, str) else law
    if law.per_run:
        raise InputError(
            f"law {law.name!r} is fitted to each run by itself; keep one with --where and write the law as a "
            'formula, like --law "L_inf + Z*exp(-z*T)", or use `unified`, which holds for all of a size.'
        )
    point = point_of(law, at, table)
    fitted = fit_table(table, law, **options)
    row = {k: np.array([v]) for k, v in point.items()}
    draws = over(fitted.resamples(n_resamples), lambda p: fitted.predict(row, p)[0])
    low, high = ends(fitted, draws)
    value = float(fitted.predict(row)[0])
    beyond = outside(fitted, point)
    text = ", ".join(f"{k} = {v:.6g}" for k, v in at.items())
    unit = _LOSS if law.target == "val_loss" else ""
    return Answer(
        question=f"{law.target} at {text}",
        values=(Param(name=law.target, value=value, ci_low=low, ci_high=high, unit=unit),),
        inside=not beyond,
        interval_method=f"{resampling(fitted, n_resamples)}, propagated; of the law's mean, not of one more run",
        fit=fitted.result,
        notes=tuple(beyond),
    )


def outside(fitted: Fit, point: dict[str, float]) -> list[str]:
    """A sentence for each variable of a setting that lies outside what was measured."""
    measured = fitted.dataset.columns
    return [
        f"{name} = {v:.4g} lies outside the measured {measured[name].min():.4g} to {measured[name].max():.4g}"
        for name, v in point.items()
        if not measured[name].min() * (1 - 1e-9) <= v <= measured[name].max() * (1 + 1e-9)
    ]


def resampling(fitted: Fit, n: int = 500) -> str:
    """What `Fit.resamples` does, in words."""
    return f"bootstrap ({fitted.dataset.units} resampled), n={n}"


def over(draws: dict[str, np.ndarray], of) -> np.ndarray:
    """`of` the parameters of every draw, (R, ...)."""
    names = list(draws)
    return np.array(
        [of(dict(zip(names, row, strict=True))) for row in zip(*draws.values(), strict=True)]
    )


def optimal(table: Table, budget: float, law: str | Law = "recurrence", **options) -> Answer:
    """The best setting for a compute budget (FLOPs, by the rule of the source).

    Args:
        law: "recurrence" reads mu* and D* from the power laws of the minima and "isoflop" N* and D*;
            "training" minimises the law along the budget with the measured FLOPs per token of each
            mu; a law in N and D alone is minimised along C = 6 N D.

    Raises:
        InputError: another law, or minima from which no exponent follows.
    """
    if not 0 < budget < np.inf:
        raise InputError(f"--budget is {budget}; FLOPs above 0 are needed, like 1e20.")
    if law in ("recurrence", "isoflop"):
        over = options.get("over") or ("N" if law == "isoflop" else "mu")
        return _optimal_by_lines(table, budget, options.get("confidence", 0.95), law, over)
    options.pop("over", None)
    law = library.get(law) if isinstance(law, str) else law
    if set(law.columns) == {"n_params", "n_tokens"}:
        return _optimal_size(table, budget, law, options)
    if set(law.columns) == {"n_params_unrolled", "n_tokens"}:
        return _optimal_by_law(table, budget, law, options)
    raise InputError(
        f"--law {law.name!r}: an optimum follows from recurrence, isoflop, training, or a law in N and D alone."
    )


def _optimal_size(table: Table, budget: float, law: Law, options: dict) -> Answer:
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
    draws = over(fitted.resamples(n_resamples), best)
    n_low, n_high = (float(np.exp(v)) for v in ends(fitted, draws[:, 0]))
    n = float(np.exp(middle))
    d = budget / (6 * n)
    return _best_along(
        fitted,
        f"parameters and tokens at {budget:.4g} FLOPs, by the {law.name} law and C = 6 N D",
        {
            "N*": (n, n_low, n_high, "parameters"),
            "D*": (d, budget / (6 * n_high), budget / (6 * n_low) if n_low else np.inf, "tokens"),
            "loss": (loss, *_ends_of_loss(fitted, draws[:, 1], np.isinf(draws[:, 0])), _LOSS),
        },
        outside(fitted, {"n_params": n, "n_tokens": d}),
        (budget, 6 * measured["n_params"] * measured["n_tokens"]),
        n_resamples,
    )


def _ends_of_loss(fitted: Fit, losses: np.ndarray, falling: np.ndarray) -> tuple[float, float]:
    """Of the loss at the optimum; a resample whose law falls on beyond the grid bounds it from above alone."""
    low, _ = ends(fitted, np.where(falling, -np.inf, losses))
    return low, ends(fitted, losses)[1]


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
        interval_method=f"{resampling(fitted, n_resamples)}, propagated through the minimum",
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


def _optimal_by_lines(
    table: Table, budget: float, confidence: float, law: str, over: str
) -> Answer:
    from analysis.isoflop import parabolas

    if law == "isoflop":
        found = parabolas.fit_isoflop(table, over, confidence)
    else:
        found = parabolas.fit_recurrence(table, confidence)
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


def _optimal_by_law(table: Table, budget: float, law: Law, options: dict) -> Answer:
    # train_flops is asked for first, so that FLOPs per token can be read from the same rows
    table = load.need(table, ("mean_recurrence", "train_flops", *law.columns), "training")
    cost = flops_per_token(table)
    total, core = sizes(table)
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
    losses = over(fitted.resamples(n_resamples), lambda p: fitted.predict(grid, p))
    falling = losses.argmin(axis=1) == len(MU_GRID) - 1
    mu_low, mu_high = ends(fitted, np.where(falling, np.inf, MU_GRID[losses.argmin(axis=1)]))
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
            "loss": (loss, *_ends_of_loss(fitted, losses.min(axis=1), falling), _LOSS),
        },
        notes,
        (budget, table.frame.train_flops.to_numpy(float)),
        n_resamples,
    )


def flops_per_token(table: Table):
    """FLOPs per trained token as a function of mu: affine, read from the rows.

    Counting rules are affine in mu where mu_bwd = mu / 2.

    Raises:
        InputError: when the rows lie off a straight line by more than 5 %: another mu_bwd rule.
    """
    frame = table.frame
    mu = np.array(frame.mean_recurrence, dtype=float)
    cost = np.array(frame.train_flops, dtype=float) / np.array(frame.n_tokens, dtype=float)
    slope, base = np.polyfit(mu, cost, 1)
    off = np.abs(base + slope * mu - cost) / cost
    if off.max() > 0.05:
        raise InputError(
            f"{table.source}: FLOPs per token are not a straight line in mean_recurrence (off by "
            f"{off.max():.0%}); mixed mu_bwd rules or sizes? Keep one kind with --where."
        )
    return lambda m: base + slope * np.asarray(m)


def ends(fitted: Fit, draws: np.ndarray) -> tuple[float, float]:
    """Of the interval that a fit's own bootstrap would give: few runs move the percentiles outward."""
    return percentiles(draws, tail_of(fitted.dataset, fitted.options.confidence))


def percentiles(draws: np.ndarray, tail: float) -> tuple[float, float]:
    """Ends that leave `tail` per cent of the draws out on each side."""
    # between a number and infinity nothing can be interpolated
    method: Literal["linear", "nearest"] = "linear" if np.isfinite(draws).all() else "nearest"
    low, high = np.percentile(draws, [tail, 100 - tail], method=method)
    return float(low), float(high)


def sizes(table: Table) -> tuple[float, float]:
    """Total and core parameters of the one size in the table."""
    frame = table.frame
    for name in ("n_params", "n_params_core"):
        if name not in frame or frame[name].nunique() != 1:
            raise InputError(
                f"{table.source}: {name} is absent or differs between rows; the optimum is per size. "
                "Map it, or keep one size with --where."
            )
    return float(frame.n_params.iloc[0]), float(frame.n_params_core.iloc[0])


def point_of(law, at: dict[str, float], table: Table) -> dict[str, float]:
    """The law's columns at a setting, derived where a definition gives them."""
    point = dict(at)
    _refuse_unusable(at)
    if (
        "n_params_unrolled" in law.columns
        and "n_params_unrolled" not in point
        and "mean_recurrence" in point
    ):
        total, core = sizes(table)
        point["n_params_unrolled"] = total + (point["mean_recurrence"] - 1) * core
    missing = [c for c in law.columns if c not in point]
    if missing:
        letter = info(missing[0])[0]
        raise InputError(
            f"--at: law {law.name!r} needs {missing[0]}; add {letter}=VALUE (it takes "
            f"{', '.join(info(c)[0] for c in law.columns)})."
        )
    _refuse_unused(law, at, point, table)
    return {c: float(point[c]) for c in law.columns}


def _refuse_unusable(at: dict[str, float]) -> None:
    for name, value in at.items():
        letter, unit, above = info(name)
        if not (np.isfinite(value) and value > above):
            needed = f"above {above:g}" if np.isfinite(above) else "finite"
            raise InputError(f"--at: {letter} is {value:g}; {unit} {needed} are needed.")


def _refuse_unused(law: Law, at: dict[str, float], point: dict[str, float], table: Table) -> None:
    """A quantity of --at that the law has no term in, where the table does not hold it at that value."""
    for name, value in at.items():
        if name in law.columns and not (name == "n_params_unrolled" and "mean_recurrence" in at):
            continue
        letter, frame = info(name)[0], table.frame
        if name == "mean_recurrence" and "n_params_unrolled" in law.columns:
            total, core = sizes(table)
            if np.isclose(point["n_params_unrolled"], total + (value - 1) * core):
                continue
            why = f"N_mu = {point['n_params_unrolled']:.6g} is of another mu here; leave one of them out"
        elif name == "n_params_unrolled":
            continue
        elif name == "n_loops" and "mean_recurrence" in at:
            if value == at["mean_recurrence"]:
                continue
            why = (
                f"law {law.name!r} is of losses at T = mu, here {at['mean_recurrence']:g}; leave T out, "
                "or use --law unified"
            )
        elif name in frame and frame[name].dtype.kind in "iuf" and frame[name].nunique() == 1:
            there = float(frame[name].iloc[0])
            if np.isclose(value, there):
                continue
            why = f"the runs all have {letter} = {there:.6g} and law {law.name!r} is of them alone; leave it out"
        else:
            takes = ", ".join(info(c)[0] for c in law.columns)
            why = f"law {law.name!r} does not depend on it; leave it out (it takes {takes})"
        raise InputError(f"--at: {letter} = {value:.6g}: {why}.")
