"""Whether a fitted curve describes its points: does the loss rise again, does one point stand off, do
the residuals run?

Three F tests of the fit against one with something added: a rise after the lowest point, one point
free, a slow bend. Each knows the directions that the fit itself took (the Jacobian), so that its
p-value is exact for independent normal errors; a misfit that is small beside the curve's fall says
nothing against it, however certain it is. False alarms on simulated curves: docs/laws.md.
Source: Draper & Smith, Applied Regression Analysis (3rd ed.), sections 2.2 (runs) and 8.1 (outliers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

from analysis.fitting import structure
from analysis.laws.library import Law

MIN_POINTS = 6  # below, three parameters leave too little to judge by
LEVEL = 0.008  # of each of the three tests
WIDER = 0.1  # chance at which a slow bend beside the form widens L_inf's interval
MATERIAL = 0.015  # root mean square of the log residuals, as a share of the fall in log loss
RISE = 0.05  # of the fall


def misfit(
    law: Law, values: Mapping[str, float], loops: np.ndarray, loss: np.ndarray
) -> tuple[str, float]:
    """What speaks against a form fitted to one curve by least squares on log loss, and with what chance noise alone
    does; empty and 1 when nothing does.

    Args:
        loops: (n,), in any order.
        loss: (n,), nats per token.
    """
    order = np.argsort(loops, kind="stable")
    loops, loss = loops[order], loss[order]
    nothing = "", 1.0
    if len(loops) < MIN_POINTS:
        return nothing
    fitted, slopes = law.with_slopes(values, {"n_loops": loops})
    residual = np.log(loss / fitted)
    scatter, fall = np.sqrt(np.mean(residual**2)), np.log(loss.max() / loss.min())
    lowest = int(np.argmin(loss))
    rise = np.log(loss[lowest:].max() / loss[lowest])
    if scatter <= MATERIAL * fall and rise <= RISE * fall:
        return nothing
    taken = structure.directions(np.column_stack([slopes[n] / fitted for n in law.names]))

    def gain(directions: np.ndarray) -> float:
        return structure.gain(residual, taken, directions)[0]

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
        chance = gain(after)
        if chance < LEVEL and after[:, 0] @ residual > 0:
            return rises, chance
    if scatter <= MATERIAL * fall:
        return nothing
    alone = [gain(np.eye(len(loops))[:, [i]]) for i in range(len(loops))]
    place = int(np.argmin(alone))
    chance = alone[place] * len(loops)
    if chance < LEVEL:
        return (
            f"the loss at T = {loops[place]:g} ({loss[place]:.4f}) does not lie on the curve that the others "
            f"follow: evaluate it again, or leave it out with "
            f'--where "n_loops!={loops[place]:g}"'
        ), chance
    log_loops = np.log(loops)[:, None]
    chance = gain(np.hstack([log_loops, log_loops**2]))
    if chance >= LEVEL:
        return nothing
    if rises and (np.diff(loss[lowest:]) > 0).all():
        return rises, chance
    return (
        f"lack of fit: the residuals run along T (root mean square {scatter / fall:.1%} of the fall), so "
        "the form is not that of these losses and its L_inf is not their floor; compare the forms "
        "with `parcae judge --law test-time`"
    ), chance


def shared(chances: Sequence[float]) -> float:
    """The chance up to which curves of one table are refused, so that sound tables are not for being large.

    Source: Benjamini and Hochberg (1995), J. R. Stat. Soc. B 57, 289; of sound curves alone the level of each
    is `LEVEL` over their number.
    """
    steps = LEVEL * np.arange(1, len(chances) + 1) / max(len(chances), 1)
    under = np.flatnonzero(np.sort(chances) <= steps)
    return float(steps[under[-1]]) if len(under) else 0.0


def floor_beside_a_bend(
    law: Law, values: Mapping[str, float], loops: np.ndarray, loss: np.ndarray, confidence: float
) -> tuple[float, float] | None:
    """Where L_inf may lie if the losses bend slowly beside the form; None where they show no sign of it.

    A bend too small to be told from the form's own shape moves L_inf by more than its residuals show. The
    interval holds the level that is left at every T measured, by the linearised form with the bend added.
    """
    if "L_inf" not in values or len(loops) < MIN_POINTS:
        return None
    fitted, slopes = law.with_slopes(values, {"n_loops": loops})
    residual = np.log(loss / fitted)
    jacobian = np.column_stack([slopes[name] / fitted for name in law.names])
    log_loops = np.log(loops / loops.min())
    bends = [log_loops[:, None], np.column_stack([log_loops, log_loops**2])]
    taken = structure.directions(jacobian)
    chances = [structure.gain(residual, taken, bend)[0] for bend in bends]
    which = int(np.argmin(chances))
    left = len(loops) - jacobian.shape[1] - bends[which].shape[1]
    if chances[which] > WIDER or left < 1:
        return None
    both = np.hstack([jacobian, bends[which]])
    size = np.maximum(np.linalg.norm(both, axis=0), 1e-300)
    inverse = np.linalg.pinv(both / size) / size[:, None]
    step = inverse @ residual
    variance = float(np.sum((residual - both @ step) ** 2)) / left
    at = law.names.index("L_inf")
    levels = np.zeros((len(loops), both.shape[1]))
    levels[:, at] = 1.0
    levels[:, jacobian.shape[1] :] = values["L_inf"] * bends[which]
    centre = values["L_inf"] + levels @ step
    half = stdtrit(left, 0.5 + confidence / 2) * np.linalg.norm(levels @ inverse, axis=1)
    half = half * np.sqrt(variance)
    return float((centre - half).min()), float((centre + half).max())
