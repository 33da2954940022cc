"""How many loops at test time reach a loss: T such that L(T) equals a target, with its interval.

From each run's own curve, L_inf + Z exp(-z T), or from the unified law at a setting that was not
run. Near its floor a curve is flat, so a small error of the floor moves T a lot, and a target at the
floor is never reached: the interval is then open above.
"""

from __future__ import annotations

import numpy as np

from analysis import prediction, test_time
from analysis.errors import InputError
from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.result import Param
from analysis.laws import library
from analysis.laws.law import Law
from analysis.prediction import Answer
from analysis.table.load import Table

_UNIT = "loops"


def loops_to_reach(
    table: Table,
    target: float,
    at: dict[str, float] | None = None,
    law: Law | None = None,
    **options,
) -> Answer:
    """Loops T at which the loss falls to `target` (nats per token).

    Args:
        at: mean_recurrence and n_tokens for the unified law; without them, every run's own curve.
        law: the unified law with parameters tied, held or bounded.
        options: of `FitOptions`; each run's own curve takes the confidence alone.

    Raises:
        InputError: a target that is no loss, or that no number of loops reaches.
    """
    if not (target > 0 and np.isfinite(target)):
        raise InputError(f"--loss is {target}; a loss in nats per token above 0 is needed.")
    if at is not None:
        return _by_unified(table, target, at, law or library.get("unified"), options)
    return _by_curves(table, target, options.get("confidence", 0.95))


def inverted(values: dict[str, np.ndarray], target: float) -> np.ndarray:
    """T of L_inf + Z exp(-z T) = target, at least 1; inf where the floor is not below the target."""
    gap = target - values["L_inf"]
    with np.errstate(divide="ignore", invalid="ignore"):
        loops = np.log(values["Z"] / gap) / values["z"]
    return np.where(gap > 0, np.maximum(loops, 1.0), np.inf)


def _by_curves(table: Table, target: float, confidence: float) -> Answer:
    found = test_time.fit_test_time(table, "test-time", confidence)
    sound = [c for c in found.curves if c.values is not None and not c.problem]
    values, notes = [], []
    for curve in found.curves:
        name = f"T[{curve.label}]" if len(found.curves) > 1 else "T"
        measured = np.sort(curve.n_loops[curve.val_loss <= target])
        if len(measured):
            seen = ", ".join(f"{t:g}" for t in measured)
            notes.append(f"{curve.label}: the losses measured at T = {seen} reach it")
        value, low, high = (
            _one(curve, target, confidence) if curve in sound else (np.inf, None, None)
        )
        if np.isinf(value) and len(measured):
            value, low, high = float(measured[0]), None, None
        if np.isinf(value):
            if curve in sound:
                notes.append(
                    f"{curve.label}: never reached; its curve levels off at L_inf = "
                    f"{curve.params['L_inf']:.4f}"
                )
            continue
        values.append(Param(name=name, value=value, ci_low=low, ci_high=high, unit=_UNIT))
        if value > curve.n_loops.max():
            notes.append(f"{curve.label}: beyond the {curve.n_loops.max():g} loops measured")
        elif value == 1.0:
            notes.append(f"{curve.label}: one loop already reaches it")
    if not values and not sound:
        raise InputError(
            f"{table.source}: no run has a curve to read loops from, and no measured loss is as low as "
            f"{target:.4f}: {found.result.problems[0]}"
        )
    if not values:
        lowest = min(sound, key=lambda c: c.params["L_inf"])
        raise InputError(
            f"--loss {target:.4f}: no run reaches it with any number of loops; the lowest floor is "
            f"L_inf = {lowest.params['L_inf']:.4f} ({lowest.label}). Ask for more than that."
        )
    notes += [f"no curve: {p}" for p in found.result.problems]
    return Answer(
        question=f"loops at test time for a loss of {target:.5g} nats per token",
        values=tuple(values),
        inside=not any("beyond" in n for n in notes),
        interval_method="percentiles of T over Student t draws of the linearised curve",
        fit=found.result,
        notes=tuple(notes),
    )


def _one(curve, target: float, confidence: float) -> tuple[float, float | None, float | None]:
    value = float(inverted({k: np.array(v) for k, v in curve.values.items()}, target))
    draws = inverted(curve.fit.student_draws(), target)
    low, high = prediction.percentiles(draws, 50 * (1 - confidence))
    return value, None if np.isinf(low) else low, None if np.isinf(high) else high


def _by_unified(
    table: Table, target: float, at: dict[str, float], law: Law, options: dict
) -> Answer:
    if "n_loops" in at:
        raise InputError(
            f"--at: T = {at['n_loops']:g}: the loops are what is asked for; leave T out, or ask `predict` for "
            "the loss at a T."
        )
    point = prediction.point_of(law, at | {"n_loops": 1.0}, table)
    fitted = fit_table(table, law, **{"n_resamples": 500} | options)
    n = fitted.options.n_resamples
    value = float(inverted(_curve_at(fitted, fitted.params, point), target))
    if np.isinf(value):
        floor = float(_curve_at(fitted, fitted.params, point)["L_inf"])
        raise InputError(
            f"--loss {target:.4f}: the unified law levels off at {floor:.4f} there; ask for more."
        )
    draws = prediction.over(
        fitted.resamples(n), lambda p: inverted(_curve_at(fitted, p, point), target)
    )
    low, high = (None if np.isinf(x) else x for x in prediction.ends(fitted, draws))
    outside = prediction.outside(fitted, {k: v for k, v in point.items() if k != "n_loops"})
    most = fitted.dataset.columns["n_loops"].max()
    if value > most:
        outside.append(f"beyond the {most:g} loops measured")
    text = ", ".join(f"{k} = {v:.6g}" for k, v in at.items())
    return Answer(
        question=f"loops at test time for a loss of {target:.5g} nats per token at {text}",
        values=(Param(name="T", value=value, ci_low=low, ci_high=high, unit=_UNIT),),
        inside=not outside,
        interval_method=f"{prediction.resampling(fitted, n)}, propagated",
        fit=fitted.result,
        notes=tuple(outside),
    )


def _curve_at(fitted: Fit, params: dict[str, float], point: dict[str, float]):
    """L_inf, Z and z of the curve over T that the unified law gives at a setting."""
    row = {k: np.array([v]) for k, v in point.items()}
    params = fitted.law.whole(params)
    floor = library.get("unified").predict(params | {"Z": 0.0}, row)[0]
    rate = params["z"] * point["mean_recurrence"] ** -params["gamma"]
    return {"L_inf": np.array(floor), "Z": np.array(params["Z"]), "z": np.array(rate)}
