"""Runs that no smooth law fits: left out of the fit, and said, so that they do not bend it.

A training law is smooth. A model that had too few tokens for its loops may not have learnt to use them: its loss then
lies on no such law, and one run like that moves every quantity of the fit. What was measured alone decides:

1. The run is no optimum: one with fewer loops and no more FLOPs has a lower loss.
2. With it go all runs of at least as many loops on no more tokens, and 1. holds for each of them.
3. Without them the law leaves so much less that chance does not explain it: with k runs left out of n,
       F = ((S_n - S_{n-k}) / k) / ((S_{n-k} + d s^2) / (n - k - P + d)),    S the sum of squares,
   s the noise stated before, which counts as d residuals. This is the test of k runs with a mean of their own (Cook and
   Weisberg 1982, Residuals and Influence in Regression, 2.2), the law refitted and not linearised: where it is not known
   it bends to the run, and F stays small. p is multiplied by the number of sets looked at (Bonferroni).

A run that may be an optimum is never left out, however far below the law it lies. What is left out follows from all runs
that ended, at each decision anew: later runs may bring one back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as f_distribution

LEVEL = 0.01  # of p after Bonferroni, at each decision
_MOST = 3  # no more than a third of the runs is left out
_REFITTED = 3  # sets that look worst by the linearised law
_LOOSE = 0.05  # p of the linearised law, beyond which no set is refitted


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One run that is no part of the fit."""

    row: int  # of the grid
    loss: float
    expected: float  # by the law of the runs that are kept
    p: float  # of the set that it was left out with, by chance


def beyond(loops: np.ndarray, tokens: np.ndarray, at_loops, at_tokens) -> np.ndarray:
    """Which settings (n,) have at least the loops and at most the tokens of one of the others (m,): (n,)."""
    deeper = loops[:, None] >= np.atleast_1d(at_loops)
    shorter = tokens[:, None] <= np.atleast_1d(at_tokens) * (1 + 1e-9)
    return np.any(deeper & shorter, axis=1)


def sets(loops, tokens, flops, losses, n_params: int) -> list[np.ndarray]:
    """Masks (n,) of runs that may be left out together, by 1. and 2. of the module."""
    n = len(losses)
    lower = (
        (loops < loops[:, None])
        & (flops <= flops[:, None] * (1 + 1e-9))
        & (losses < losses[:, None])
    )
    no_optimum = lower.any(axis=1)
    found: dict[bytes, np.ndarray] = {}
    for i in range(n):
        mask = beyond(loops, tokens, loops[i], tokens[i])
        few = mask.sum() <= min(n // _MOST, n - n_params - 2)
        if few and no_optimum[mask].all():
            found[mask.tobytes()] = mask
    return list(found.values())


def left_out(
    masks: list[np.ndarray],
    residuals: np.ndarray,
    slopes: np.ndarray,
    squares_without: Callable[[np.ndarray], float],
    noise: float,
    dof: float,
) -> tuple[np.ndarray, float] | None:
    """The set that no law fits and its p, or None.

    Args:
        masks: of `sets`.
        residuals: (n,) of the fit to all runs; slopes: (n, P) of its log losses.
        squares_without: the sum of squares of the law refitted to the runs of a mask (n,).
        noise: stated before, counted as `dof` residuals.
    """
    basis = np.linalg.qr(slopes / np.maximum(np.linalg.norm(slopes, axis=0), 1e-300))[0]
    whole = float(residuals @ residuals)

    def chance(mask: np.ndarray, without: float) -> float:
        k = int(mask.sum())
        rest = len(residuals) - k - slopes.shape[1] + dof
        ratio = (whole - without) / k / ((without + dof * noise**2) / rest)
        return float(f_distribution.sf(ratio, k, rest)) * len(masks)

    def linearised(mask: np.ndarray) -> float:
        own = np.eye(int(mask.sum())) * (1 + 1e-9) - basis[mask] @ basis[mask].T
        fall = float(residuals[mask] @ np.linalg.solve(own, residuals[mask]))
        return chance(mask, max(whole - fall, 0.0))

    looks = sorted((linearised(mask), i) for i, mask in enumerate(masks))
    judged = [
        (chance(masks[i], squares_without(~masks[i])), i)
        for p, i in looks[:_REFITTED]
        if p < _LOOSE * len(masks)
    ]
    if not judged or min(judged)[0] >= LEVEL:
        return None
    p, i = min(judged)
    return masks[i], p
