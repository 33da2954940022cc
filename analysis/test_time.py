"""The test-time law of every run: loss against loops run at evaluation, L_inf + Z exp(-z T).

Each run's curve is fitted by itself, by least squares on log loss; the result gathers the curves.
A run whose loss does not fall with loops, or has too few of them, is named and has no numbers.
Source: Parcae (arXiv:2604.12946), test-time saturation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from analysis.errors import InputError
from analysis.fitting.dataset import Dataset
from analysis.fitting.fit import Fit, at_bounds, fit, search_problems
from analysis.fitting.options import FitOptions
from analysis.fitting.result import Dropped, FitResult, Param
from analysis.laws import library
from analysis.laws.law import Law
from analysis.misfit import floor_beside_a_bend, misfit, shared
from analysis.table import load, units
from analysis.table.columns import written
from analysis.table.guess import MIN_LOOPS
from analysis.table.load import Table

_OTHER = "test-time-power-floor"  # the form whose floor is lowest for losses that it fits as well
_AS_WELL = 4.0  # a form whose log likelihood, twice, is lower by no more fits as well
_SEEN = 1e-6  # of L_inf: an interval wider by less is as it was


@dataclass(frozen=True, slots=True)
class Curve:
    """One run: what was measured, and what the form gives."""

    run: str
    label: str  # for legends: mu and budget
    mean_recurrence: float | None
    budget_flops: float | None
    n_loops: np.ndarray
    val_loss: np.ndarray
    values: dict[str, float] | None  # None when no fit follows
    intervals: dict[str, tuple[float | None, float | None]]
    objective: float | None  # half the sum of squared log residuals
    problem: str  # empty when the fit stands
    fit: Fit | None = None  # for questions that go on from there
    widened: str = ""  # by what L_inf's interval is wider than the form by itself makes it

    @property
    def params(self) -> dict[str, float]:
        """`values` of a curve that has them."""
        assert self.values is not None, f"{self.label}: {self.problem}"
        return self.values


@dataclass(frozen=True, slots=True)
class TestTime:
    """The gathered result, and the curves that the figure draws."""

    __test__ = False  # the name is the law's; pytest would collect it

    result: FitResult
    curves: tuple[Curve, ...]
    law: Law
    table: Table

    def summary(self) -> str:
        """One line: how many curves the form fits, and the parameters at the largest budget."""
        sound = [c for c in self.curves if c.values is not None and not c.problem]
        text = f"{len(sound)} of {len(self.curves)} curves follow {self.law.formula}"
        if sound:
            top = max(c.budget_flops or 0.0 for c in sound)
            shown = sorted(
                (c for c in sound if (c.budget_flops or 0.0) == top),
                key=lambda c: c.mean_recurrence or 0.0,
            )
            text += "; " + "; ".join(f"{c.label}: {_values(c)}" for c in shown[:3])
        left = len(self.curves) - len(sound)
        return f"{self.law.name} [{self.table.source}]: {text}" + (
            f"; of {left} the report says why they do not" if left else ""
        )


def fit_test_time(
    table: Table, form: str | Law = "test-time", confidence: float = 0.95, n_starts: int = 8
) -> TestTime:
    """Fit one form to each run's curve.

    Args:
        table: rows with n_loops and val_loss; trial_id tells runs apart (one run without it).
        form: one of `library.TEST_TIME_FORMS`.

    Raises:
        InputError: columns or values missing, T below 1, or no run with enough loops.
    """
    law = library.get(form) if isinstance(form, str) else form
    if not law.per_run:
        raise InputError(
            f"law {law.name!r} is not fitted run by run; use one of {', '.join(library.TEST_TIME_FORMS)}."
        )
    table, twice = usable(table, law.name)
    curves, dropped = [], []
    for run, rows in runs_of(table):
        if str(run) in twice:
            curves.append(Curve(*_measured(run, rows), None, {}, None, twice[str(run)]))
            continue
        distinct = rows.n_loops.nunique()
        if distinct < MIN_LOOPS:
            dropped.append((run, len(rows), distinct))
            continue
        curves.append(_curve(run, rows, law, confidence, n_starts))
    if not curves:
        most = max(n for *_, n in dropped)
        raise InputError(
            f"{table.source}: no run is evaluated at {MIN_LOOPS} numbers of loops (most: {most}); a "
            "curve needs that many. Evaluate at more loops."
        )
    curves = _judged(curves)
    curves.sort(key=lambda c: (c.budget_flops or 0.0, c.mean_recurrence or 0.0, str(c.run)))
    lost = sum(n for _, n, _ in dropped)
    reason = f"runs evaluated at fewer than {MIN_LOOPS} numbers of loops ({len(dropped)} runs)"
    gone = (*table.dropped, *([Dropped(reason=reason, n_rows=lost)] if lost else []))
    return TestTime(
        _gather(table, law, curves, gone, confidence, n_starts), tuple(curves), law, table
    )


def usable(table: Table, law: str) -> tuple[Table, dict[str, str]]:
    """The table with what curves over loops need, and the runs that have several losses at one T, with a
    sentence each.

    Raises:
        InputError: columns or values missing, T below 1, losses in another unit, or no run to tell.
    """
    table = load.need(table, ("n_loops", "val_loss"), law)
    _refuse_below_one(table)
    for _, rows in runs_of(table):
        # beyond its lowest loss a curve may explode, before it none does
        best = rows.n_loops[rows.val_loss.idxmin()]
        units.refuse_diverged(rows[rows.n_loops <= best], table.source)
    return table, _counted_twice(table)


def _gather(table, law, curves, dropped, confidence, n_starts) -> FitResult:
    single = len(curves) == 1
    params = []
    for curve in curves:
        for p in law.params:
            low, high = curve.intervals.get(p.name, (None, None))
            params.append(
                Param(
                    name=p.name if single else f"{p.name}[{curve.run}]",
                    value=None if curve.values is None else curve.values[p.name],
                    ci_low=low,
                    ci_high=high,
                    unit=p.unit,
                )
            )
    fitted = [c for c in curves if c.values is not None]
    return FitResult(
        law=law.name,
        formula=law.formula,
        source=table.source,
        params=tuple(params),
        confidence=confidence,
        interval_method="linearised least squares, Student t; from the misfit of the form along one "
        "run's curve, not from differences between seeds",
        n_obs=sum(len(c.n_loops) for c in curves),
        dropped=dropped,
        objective=sum(c.objective for c in fitted) if fitted else None,
        objective_name=f"{FitOptions(loss='log-lsq').objective_name} over {len(fitted)} runs",
        n_starts=n_starts,
        n_starts_at_best=n_starts if fitted else 0,
        data_sha256=table.sha256,
        flops_rule=table.flops_rule,
        tables={"curves": [_row(c) for c in curves]},
        notes=(*table.notes, *_widened(curves)),
        problems=tuple(f"run {c.run} ({c.label}): {c.problem}" for c in curves if c.problem),
    )


def _widened(curves) -> list[str]:
    wide = [c for c in curves if c.widened]
    if not wide:
        return []
    runs = ", ".join(c.run for c in wide[:4]) + (", ..." if len(wide) > 4 else "")
    return [
        f"L_inf's interval of {len(wide)} of {len(curves)} curves ({runs}) is wider than the form by itself makes it, "
        f"because these losses bear {' or '.join(dict.fromkeys(c.widened for c in wide))} as well"
    ]


def _row(curve: Curve) -> dict:
    row = {
        "run": curve.run,
        "label": curve.label,
        "mean_recurrence": curve.mean_recurrence,
        "budget_flops": curve.budget_flops,
        "n_points": len(curve.n_loops),
        "problem": curve.problem,
    }
    row |= curve.values or {}
    if curve.values and curve.objective is not None:
        n = len(curve.n_loops)
        row["rms_log_residual"] = float(np.sqrt(2 * curve.objective / n))
    return row


def _measured(run, rows) -> tuple[str, str, float | None, float | None, np.ndarray, np.ndarray]:
    """The first fields of a `Curve`: what was run, not what was fitted."""
    loops, loss = np.array(rows.n_loops, dtype=float), np.array(rows.val_loss, dtype=float)
    mu, budget = _one(rows, "mean_recurrence"), _one(rows, "budget_flops")
    words = ("" if mu is None else f"mu {mu:g}", "" if budget is None else f"{budget:.3g} FLOPs")
    label = ", ".join(text for text in words if text)
    return str(run), label or str(run), mu, budget, loops, loss


def _counted_twice(table: Table) -> dict[str, str]:
    """Runs with several losses at one T, with a sentence each: two curves are not one."""
    frame = table.frame
    if "trial_id" not in frame:
        again = frame[frame.n_loops.duplicated(keep=False)]
        if len(again):
            raise InputError(
                f"{table.source}: {_several(again)} and no column that tells runs apart. Map it with "
                f"{written(table.columns, trial_id=_telling(table))}, or keep one run with --where."
            )
        return {}
    key = ["trial_id", "n_loops"]
    twice = {}
    for run, rows in frame[frame.duplicated(key, keep=False)].groupby("trial_id", sort=False):
        more = rows.n_loops.nunique() - 1
        twice[str(run)] = (
            f"{_several(rows)}{f', and at {more} more T' if more else ''}; one curve has one: keep one evaluation "
            "of it, or map run to a column that tells them apart"
        )
    if twice and len(twice) == frame.trial_id.nunique():
        run, words = next(iter(twice.items()))
        raise InputError(f"{table.source}: run {run} has {words}.")
    return twice


def _several(rows) -> str:
    first = rows[rows.n_loops == rows.n_loops.iloc[0]]
    losses = ", ".join(f"{v:.4f}" for v in first.val_loss[:4])
    return f"{len(first)} losses at T = {first.n_loops.iloc[0]:g} ({losses})"


def _telling(table: Table) -> str:
    """The file's column that has one loss at each T, as a run does; COLUMN where none of ours is one."""
    names = [str(n) for n in table.frame if n not in ("val_loss", "n_loops")]
    found = (n for n in names if not table.frame.duplicated([n, "n_loops"]).any())
    return next((table.columns.get(n, table.called(n)) for n in found), "COLUMN")


def _curve(run, rows, law, confidence, n_starts) -> Curve:
    common = _measured(run, rows)
    *_, loops, loss = common
    order = np.argsort(loops)
    if loss[order[-1]] >= loss[order[0]]:
        words = (
            f"the loss does not fall with loops ({loss[order[0]]:.4f} at T = {loops[order[0]]:g}, "
            f"{loss[order[-1]]:.4f} at T = {loops[order[-1]]:g}); a saturating curve does not apply"
        )
        lowest = int(np.argmin(loss))
        if loss[lowest] < loss[order[0]] and loops[lowest] < loops[order[-1]]:
            words += (
                f"; it is lowest at T = {loops[lowest]:g} ({loss[lowest]:.4f}) and rises after that: keep the "
                f'loops up to there with --where "n_loops<={loops[lowest]:g}"'
            )
        return Curve(*common, None, {}, None, words)
    options = FitOptions(
        loss="log-lsq", interval="linear", n_starts=n_starts, confidence=confidence
    )
    fitted = fit(Dataset.of({"n_loops": loops}, loss), law, options)
    bounds, values = fitted.intervals, fitted.params
    faults = [
        *search_problems(fitted.search),
        *at_bounds(fitted.objective, fitted.theta).values(),
        *bounds.problems,
        *_plateau(loops, values),
    ]
    intervals = {n: (bounds.low.get(n), bounds.high.get(n)) for n in law.names}
    return Curve(*common, values, intervals, fitted.search.objective, "; ".join(faults), fitted)


def _judged(curves: list[Curve]) -> list[Curve]:
    """The curves with what speaks against their form: a misfit beyond chance; a lesser one is in L_inf's interval."""
    fitted = [c for c in curves if c.fit is not None]
    against = [misfit(c.fit.law, c.params, c.n_loops, c.val_loss) for c in fitted if c.fit]
    limit = shared([chance for _, chance in against])
    words = {
        c.run: text for c, (text, chance) in zip(fitted, against, strict=True) if chance <= limit
    }
    out = []
    for c in curves:
        if text := words.get(c.run):
            c = replace(c, problem="; ".join(t for t in (c.problem, text) if t))
        elif c.fit is not None and not c.problem and "L_inf" in c.intervals:
            ends, why = _floor(c.fit, c.n_loops, c.val_loss, c.intervals["L_inf"])
            c = replace(c, intervals=c.intervals | {"L_inf": ends}, widened=why)
        out.append(c)
    return out


def _floor(fitted: Fit, loops, loss, given) -> tuple[tuple[float | None, float | None], str]:
    """L_inf's interval with what the misfit and the other form with a floor say of it, and which of them did."""
    low, high = given
    if low is None or high is None:
        return given, ""
    ends: dict[str, tuple[float, float]] = {}
    loss_of = fitted.search.objective
    bent = floor_beside_a_bend(fitted.law, fitted.params, loops, loss, fitted.options.confidence)
    if bent is not None:
        ends["a slow bend"] = max(bent[0], 0.0), bent[1]
    other = library.get(_OTHER if fitted.law.name != _OTHER else "test-time")
    found = fit(fitted.dataset, other, fitted.options)
    least, most = found.intervals.low.get("L_inf"), found.intervals.high.get("L_inf")
    worse = len(loss) * np.log(max(found.search.objective, 1e-30) / max(loss_of, 1e-30))
    if least and most and worse < _AS_WELL:
        level = found.params["L_inf"]
        half = level * min(np.log(most / least) / 2, 1.0)
        ends[other.formula] = level - half, min(level + half, float(loss.min()))
    wide = min([low, *(e[0] for e in ends.values())]), max([high, *(e[1] for e in ends.values())])
    seen = [why for why, e in ends.items() if min(e[0] - low, high - e[1]) < -_SEEN * low]
    return (wide, " and ".join(seen)) if seen else (given, "")


def _values(curve: Curve) -> str:
    parts = []
    for name, value in curve.params.items():
        low, high = curve.intervals.get(name, (None, None))
        bounds = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        parts.append(f"{name} {value:.4g}{bounds}")
    return ", ".join(parts)


def _plateau(loops: np.ndarray, values: dict[str, float]) -> list[str]:
    """z and Z hang on points off the plateau; with one such point they are not identified."""
    if "z" not in values or "L_inf" not in values:
        return []
    off = np.exp(-values["z"] * (loops - loops.min())) > 1e-3
    if values["z"] > 0 and off.sum() < 2:
        return [
            f"only one point (T = {loops.min():g}) lies off the plateau: z and Z cannot be told "
            "apart, only L_inf is determined"
        ]
    return []


def runs_of(table: Table):
    """(run, its rows) of every run; all rows are one where nothing tells them apart."""
    if "trial_id" not in table.frame:
        return [("all rows", table.frame)]
    return list(table.frame.groupby("trial_id", sort=False))


def _one(rows, name: str) -> float | None:
    if name not in rows:
        return None
    value = rows[name].iloc[0]
    return None if value != value else float(value)


def _refuse_below_one(table: Table) -> None:
    low = table.frame.n_loops.min()
    if low < 1:
        raise InputError(
            f"{table.source}: n_loops is {low:g} in a row; a looped model runs at least once, so "
            'T >= 1 is needed. Leave it out with --where "n_loops>=1".'
        )
