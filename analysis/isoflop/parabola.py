"""One budget's parabola: its least squares, its vertex with Fieller's interval, and whether the grid encloses it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtr, stdtrit

from analysis.fitting.intervals import ratio_interval
from analysis.table.columns import info

MIN_RUNS = 4  # three determine a parabola and leave nothing to judge it by
FLAT = 0.05  # a parabola that bends upward no more than chance makes it encloses nothing


def axis_words(axis: str) -> tuple[str, str]:
    """(letter, unit) of an axis; a file's own column carries its name."""
    letter, unit, _ = info(axis)
    return letter, "1" if unit == "-" else unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Parabola:
    """One budget's fit along one axis; loss = a + b z + c z^2, z = log(axis) - centre."""

    axis: str  # a column: "mean_recurrence", "n_tokens", "n_params", ...
    budget_flops: float
    n_runs: int
    centre: float
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    sse: float = 0.0
    low: float  # grid of the axis
    high: float
    lowest_at: float  # where the lowest measured loss is
    optimum: float | None = None  # vertex, in the axis' unit
    optimum_loss: float | None = None
    ci_low: float | None = None  # Fieller's interval of the vertex; None: unbounded on that side
    ci_high: float | None = None
    status: str = "none"  # "interior", "flat", "edge", "outside", "none"
    reason: str  # in words, empty when interior

    @property
    def interpolated(self) -> bool:
        """Whether the vertex lies between the ends of the grid."""
        return self.optimum is not None and self.low <= self.optimum <= self.high

    def predict(self, axis: np.ndarray) -> np.ndarray:
        """Loss (nats per token) at values of the axis."""
        z = np.log(axis) - self.centre
        return self.a + self.b * z + self.c * z * z


def least_squares(
    group, axis: str
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, float] | None]:
    """(z values, losses, fit): fit is (coefficients, unscaled covariance, sse), or None."""
    values = np.array(group[axis], dtype=float)
    loss = np.array(group["val_loss"], dtype=float)
    order = np.argsort(values, kind="stable")
    values, loss = values[order], loss[order]
    if len(np.unique(values)) < MIN_RUNS:
        return values, loss, None
    z = np.log(values) - np.log(values).mean()
    design = np.column_stack([np.ones_like(z), z, z * z])
    coefficients, *_ = np.linalg.lstsq(design, loss, rcond=None)
    residual = loss - design @ coefficients
    inverse = np.linalg.inv(design.T @ design)
    return values, loss, (coefficients, inverse, float(residual @ residual))


def judged(axis, budget, values, loss, fit, misfit, noise, confidence) -> Parabola:
    """Judge one fit: where its vertex is, how sure, and whether the grid encloses it.

    Args:
        misfit, noise: variance and degrees of freedom, of the residuals and of what the interval takes.
    """
    letter = axis_words(axis)[0]
    centre = float(np.log(values).mean())
    unfitted = Parabola(
        axis=axis,
        budget_flops=budget,
        n_runs=len(values),
        centre=centre,
        low=float(values[0]),
        high=float(values[-1]),
        lowest_at=float(values[np.argmin(loss)]),
        reason=f"only {len(np.unique(values))} different values of {letter}; "
        f"a parabola that can be judged needs {MIN_RUNS}",
    )
    if fit is None:
        return unfitted
    (a, b, c), inverse, sse = fit
    fitted = replace(unfitted, a=float(a), b=float(b), c=float(c), sse=sse)
    if c <= 0:
        reason = (
            f"the parabola in log {letter} opens downward (curvature {c:.3g}): it has no minimum"
        )
        return replace(fitted, reason=f"{reason}; {_where(values, loss, letter)}")
    vertex = -b / (2 * c)
    status, reason = _placed(vertex + centre, values, loss, letter)
    if status == "outside":
        return replace(fitted, status=status, reason=reason)
    if status == "interior" and (chance := _by_chance(c, inverse, misfit)) > FLAT:
        status = "flat"
        reason = (
            f"its curvature in log {letter}, {c:.2g}, is not told from 0 (p = {chance:.2g}, from what all parabolas "
            f"miss), so its vertex at {letter} = {np.exp(vertex + centre):.3g} may be the runs' noise"
        )
    low, high = _fieller(b, c, inverse, noise, confidence)
    return replace(
        fitted,
        optimum=float(np.exp(vertex + centre)),
        optimum_loss=float(a - b * b / (4 * c)),
        ci_low=None if low is None else float(np.exp(low + centre)),
        ci_high=None if high is None else float(np.exp(high + centre)),
        status=status,
        reason=reason,
    )


def _placed(log_vertex, values, loss, letter) -> tuple[str, str]:
    """Whether the measured grid encloses the minimum; the reason in words when it does not."""
    grid = np.unique(np.log(values))
    low, high = grid[0] - (grid[1] - grid[0]), grid[-1] + (grid[-1] - grid[-2])
    text = f"the vertex is at {letter} = {np.exp(min(log_vertex, 700.0)):.3g}"
    if not low <= log_vertex <= high:
        return "outside", f"{text}, more than a grid step outside; {_where(values, loss, letter)}"
    outside = not grid[0] <= log_vertex <= grid[-1]
    if outside or np.argmin(loss) in (0, len(loss) - 1):
        place = "outside the grid" if outside else "inside the grid"
        return "edge", f"{text}, {place}; {_where(values, loss, letter)}"
    return "interior", ""


def _where(values, loss, letter) -> str:
    """What the measurements themselves say about the place of the minimum."""
    lowest = values[np.argmin(loss)]
    edge = " (an end of it)" if np.argmin(loss) in (0, len(loss) - 1) else ""
    return f"the lowest measured loss is at {letter} = {lowest:.4g}{edge}, grid {values[0]:.4g} to {values[-1]:.4g}"


def _by_chance(c, inverse, misfit) -> float:
    """How often runs without a minimum would bend upward as much: one-sided t test of the curvature."""
    variance, dof = misfit
    if not variance or dof < 1:
        return 0.0
    return float(stdtr(dof, -c / np.sqrt(variance * inverse[2, 2])))


def _fieller(b, c, inverse, noise, confidence):
    """Interval of the vertex -b / (2c); None where the curvature itself is not told from zero."""
    variance, dof = noise
    if not variance or dof < 1:
        return None, None
    t2 = float(stdtrit(dof, 0.5 + confidence / 2)) ** 2 * variance
    of_both = np.outer([-1, 2], [-1, 2]) * inverse[1:, 1:]  # covariance of -b and 2c
    return ratio_interval(-b, 2 * c, of_both, t2)
