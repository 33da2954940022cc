"""FLOPs laid out over settings so that one quantity of a law is known best: c-optimality with costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 120  # multiplicative steps
_WIDE = 3.0  # standard deviation of a logarithm that is not known at all


@dataclass(frozen=True, kw_only=True, eq=False)
class Bearing:
    """What settings say about the target by each of K basins, parameters by their scales."""

    jacobians: np.ndarray  # (K, n, P) slopes of log losses
    targets: np.ndarray  # (K, P) slopes of the target
    values: np.ndarray  # (K,) of the target
    away: np.ndarray  # (n,) |log mu / mu*|, mu* the best of its budget by the nearest basin


def layout(jacobians, targets, informations, weights, costs, total: float) -> np.ndarray:
    """Spend (n,) that minimises the mean variance of the targets, sum `total`.

    Args:
        jacobians: (K, n, P) of each setting's log loss over its noise.
        targets: (K, P) slopes of the quantity.
        informations: (K, P, P) that are there already.
        weights: (K,) of the basins.
        costs: (n,) of one run; infinite for settings that cannot be run.
    """
    spend = np.where(np.isfinite(costs), total / np.isfinite(costs).sum(), 0.0)
    usable = np.isfinite(jacobians).all(axis=(1, 2)) & np.isfinite(targets).all(axis=1)
    if not usable.any():
        return np.zeros(len(costs))
    jacobians, targets, informations = (x[usable] for x in (jacobians, targets, informations))
    weights = weights[usable] / weights[usable].sum()
    for _ in range(_ROUNDS):
        runs = spend / costs
        inner = informations + np.einsum("knp,n,knq->kpq", jacobians, runs, jacobians)
        pull = np.linalg.solve(inner, targets[:, :, None])[:, :, 0]
        gain = weights @ np.square(np.einsum("knp,kp->kn", jacobians, pull)) / costs
        spend = spend * np.sqrt(gain / gain.max()) if gain.max() > 0 else 0 * spend
        if not spend.sum() > 0:
            break
        spend *= total / spend.sum()
    return spend


def information(scaled: np.ndarray) -> np.ndarray:
    """(P, P) of rows (n, P) of slopes over the noise, parameters by their scales, and next to nothing before."""
    return scaled.T @ scaled + np.eye(scaled.shape[1]) / _WIDE**2


def variance(known: np.ndarray, target: np.ndarray) -> float:
    """Of a target with slopes (P,), by information (P, P)."""
    return float(target @ np.linalg.solve(known, target))
