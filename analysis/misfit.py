"""Whether a fitted curve describes its points: does the loss rise again, does one point stand off, do
the residuals run?

Three F tests of the fit against one with something added: a rise after the lowest point, one point
free, a slow bend. Each knows the directions that the fit itself took (the Jacobian), so that its
p-value is exact for independent normal errors; a misfit that is small beside the curve's fall says
nothing against it, however certain it is. False alarms on simulated curves: docs/laws.md.
Source: Draper & Smith, Applied Regression Analysis (3rd ed.), sections 2.2 (runs) and 8.1 (outliers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.laws.library import Law

MIN_POINTS = 6  # below, three parameters leave too little to judge by
LEVEL = 0.008  # of each of the three tests
MATERIAL = 0.015  # root mean square of the log residuals, as a share of the fall in log loss
RISE = 0.05  # of the fall


def misfit(law: Law, values: Mapping[str, float], loops: np.ndarray, loss: np.ndarray) -> str:
    """What speaks against a form fitted to one curve by least squares on log loss; empty when nothing does.

    Args:
        loops: (n,), in any order.
        loss: (n,), nats per token.
    """
    order = np.argsort(loops, kind="stable")
    loops, loss = loops[order], loss[order]
    if len(loops) < MIN_POINTS:
        return ""
    fitted, slopes = law.with_slopes(values, {"n_loops": loops})
    residual = np.log(loss / fitted)
    scatter, fall = np.sqrt(np.mean(residual**2)), np.log(loss.max() / loss.min())
    lowest = int(np.argmin(loss))
    rise = np.log(loss[lowest:].max() / loss[lowest])
    if scatter <= MATERIAL * fall and rise <= RISE * fall:
        return ""
    jacobian = np.column_stack([slopes[name] / fitted for name in law.names])
    size = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    taken = np.linalg.qr(jacobian / size)[0]

    def gain(directions: np.ndarray) -> float:
        return _p_value(residual, taken, directions)

    rises = ""
    if rise > RISE * fall and lowest < len(loops) - 1:
        top = lowest + int(np.argmax(loss[lowest:]))
        rises = (
            f"the loss rises after T = {loops[lowest]:g} ({loss[lowest]:.4f} there, {loss[top]:.4f} at "
            f"T = {loops[top]:g}), which no saturating curve does; the loops up to there alone follow "
            f'with --where "n_loops<={loops[lowest]:g}"'
        )
        after = np.maximum(np.log(loops / loops[lowest]), 0.0)[:, None]
        # one-sided, and so half the level: where the lowest point lies was read from the same noise
        if gain(after) < LEVEL and after[:, 0] @ residual > 0:
            return rises
    if scatter <= MATERIAL * fall:
        return ""
    alone = [gain(np.eye(len(loops))[:, [i]]) for i in range(len(loops))]
    place = int(np.argmin(alone))
    if alone[place] * len(loops) < LEVEL:
        return (
            f"the loss at T = {loops[place]:g} ({loss[place]:.4f}) does not lie on the curve that the others "
            f"follow: evaluate it again, or leave it out with "
            f'--where "n_loops!={loops[place]:g}"'
        )
    log_loops = np.log(loops)[:, None]
    if gain(np.hstack([log_loops, log_loops**2])) < LEVEL:
        if rises and (np.diff(loss[lowest:]) > 0).all():
            return rises
        return (
            f"lack of fit: the residuals run along T (root mean square {scatter / fall:.1%} of the fall), so "
            "the form is not that of these losses and its L_inf is not their floor; compare the forms "
            "with `parcae judge --law test-time`"
        )
    return ""


def _p_value(residual: np.ndarray, taken: np.ndarray, directions: np.ndarray) -> float:
    """Chance that noise alone gains as much from the directions, beyond those the fit took."""
    from scipy.special import fdtrc

    free = directions - taken @ (taken.T @ directions)
    basis, size, _ = np.linalg.svd(free, full_matrices=False)
    basis = basis[:, size > 1e-6 * np.linalg.norm(directions)]
    left = len(residual) - taken.shape[1] - basis.shape[1]
    if left < 1 or not basis.shape[1]:
        return 1.0
    gained = float(np.sum((basis.T @ residual) ** 2))
    rest = max(float(residual @ residual) - gained, 1e-300)
    return float(fdtrc(basis.shape[1], left, gained / basis.shape[1] / (rest / left)))
