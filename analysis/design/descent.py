"""Many starts of one fit at once: Levenberg-Marquardt on arrays (starts, rows, parameters).

`Objective.minimise` goes on from one start; choosing a run needs dozens of optima after every run, and
one after the other they took 3 s a choice. This is the same objective in the same coordinates, to a
tolerance that a choice needs (1e-6); what is reported is always fitted by `analysis.fitting.fit`.
"""

from __future__ import annotations

import numpy as np

from analysis.fitting.objective import Objective, huber

_ROUNDS = 60
_DONE = 1e-6  # relative fall of the objective that is worth no further step
_FAR = 1e6  # damping at which a start is given up
_LARGE, _SMALL = 1e30, 1e-30


def parts(objective: Objective, thetas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log of the law (S, n) and its Jacobian (S, n, P) at thetas (S, P)."""
    n, across = len(objective.y), thetas.T[:, :, None]  # (P, S, 1)
    if not objective.terms:
        names = objective.law.names
        value, slopes = objective.law.with_slopes(
            dict(zip(names, across, strict=True)), objective.columns
        )
        shape = (len(thetas), n)
        jacobian = np.stack([np.broadcast_to(slopes[k], shape) for k in names], axis=2)
        value = np.broadcast_to(value, shape)
    else:
        value, jacobian = np.zeros((len(thetas), n)), np.zeros((len(thetas), n, len(across)))
        for t in objective.terms:
            c = across[t.c]
            if t.k is None:
                value = value + c
                jacobian[:, :, t.c] += 1.0
                continue
            z, dz = objective.variable(t, across)
            part = np.exp(-across[t.k] * z)
            jacobian[:, :, t.c] += part
            jacobian[:, :, t.k] -= c * part * z
            if t.s is not None:
                jacobian[:, :, t.s] -= c * part * across[t.k] * dz
            value = value + c * part
    value = np.clip(np.nan_to_num(value, nan=_LARGE), _SMALL, _LARGE)
    slopes = np.nan_to_num(jacobian / value[:, :, None], posinf=_LARGE, neginf=-_LARGE)
    return np.log(value), np.clip(slopes, -_LARGE, _LARGE)


def descend(
    objective: Objective,
    starts: np.ndarray,
    *,
    logs: np.ndarray | None = None,
    rounds: int = _ROUNDS,
) -> tuple[np.ndarray, np.ndarray]:
    """Optima (S, P) that starts (S, P) lead to, and their objectives (S,), in the starts' order.

    Args:
        logs: log targets (S, n), each start's own; None: the objective's for all.
    """
    theta = np.clip(starts, objective.lower, objective.upper)
    target = np.broadcast_to(
        np.log(objective.y) if logs is None else logs, (len(theta), len(objective.y))
    )
    value, jacobian = parts(objective, theta)
    r = value - target
    cost = huber(r, objective.delta).sum(axis=1)
    damping, going = np.full(len(theta), 1e-2), np.arange(len(theta))
    for _ in range(rounds):
        step = _step(objective, theta[going], r[going], jacobian[going], damping[going])
        moved = np.clip(theta[going] + step, objective.lower, objective.upper)
        value, slopes = parts(objective, moved)
        new_r = value - target[going]
        new = huber(new_r, objective.delta).sum(axis=1)
        better = new < cost[going]
        small = cost[going] - new < _DONE * cost[going]
        which = going[better]
        theta[which], cost[which] = moved[better], new[better]
        r[which], jacobian[which] = new_r[better], slopes[better]
        damping[going] *= np.where(better, 0.2, 5.0)
        going = going[~(better & small) & (damping[going] < _FAR)]
        if not len(going):
            break
    return theta, cost


def _step(objective: Objective, theta, r, jacobian, damping) -> np.ndarray:
    """Damped Gauss-Newton steps (S, P); a parameter pushed against its bound stays."""
    weight = 1 / np.maximum(np.abs(r) / objective.delta, 1.0)
    slope = np.einsum("snp,sn->sp", jacobian, weight * r)
    bend = np.einsum("snp,sn,snq->spq", jacobian, weight, jacobian)
    stuck = (theta <= objective.lower) & (slope > 0) | (theta >= objective.upper) & (slope < 0)
    slope = np.where(stuck, 0.0, slope)
    bend = np.where(stuck[:, :, None] | stuck[:, None, :], 0.0, bend)
    size = np.maximum(np.einsum("spp->sp", bend), 1e-12)
    raised = damping[:, None] * size + 1e-14 * size.max(axis=1, keepdims=True) + stuck
    bend = bend + np.eye(theta.shape[1]) * raised[:, None, :]
    return -np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
