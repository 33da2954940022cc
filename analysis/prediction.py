"""What a fit is for: the loss at a setting, the best setting for a budget, the loops for a loss.

Every answer carries an interval propagated through the fit and says whether it lies inside what was
measured.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from html import escape
from typing import Literal

import numpy as np

from analysis.errors import InputError
from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.intervals import expanded
from analysis.fitting.result import FitResult, Param, frame_of, html_of, interval
from analysis.laws import library
from analysis.laws.law import Law
from analysis.table.columns import info
from analysis.table.load import Table

MU_GRID = np.geomspace(1.0, 1024.0, 2000)
LOSS = "nats per token"


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
        place = "" if self.inside else " (extrapolated)"
        said = "".join(f"<p>{escape(n)}</p>" for n in self.notes)
        return f"<p>{escape(self.question)}{place}</p>{html_of(self.values)}{said}"

    def report(self) -> str:
        lines = [self.question]
        for v in self.values:
            ends = "" if v.ci_low is None and v.ci_high is None else f"  {interval(v)}"
            unit = v.unit if v.unit != "1" else ""
            lines.append(f"  {v.name} = {v.value:.5g}{ends} {unit}".rstrip())
        lines.append("  inside what was measured" if self.inside else "  EXTRAPOLATED")
        lines += [f"  {n}" for n in self.notes]
        method = f"  {self.fit.confidence:.0%} intervals: {self.interval_method}"
        return "\n".join([*lines, method, self.fit.report()])

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
    unit = LOSS if law.target == "val_loss" else ""
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
    """Percentiles of an answer over resamples, moved outward where runs, or rows, are few."""
    return percentiles(draws, expanded(fitted.dataset.n_runs, fitted.options.confidence))


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
    unrolled = "n_params_unrolled" in law.columns and "n_params_unrolled" not in at
    if unrolled and "mean_recurrence" in at:
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
