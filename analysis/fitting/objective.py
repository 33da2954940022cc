"""The objective of small robust fits, many at once: L = sum of exp(terms), with exact derivatives.

A batch is S parameter vectors theta (S, P), each with its own weights on the n observations: S
random starts of one data set, or S bootstrap resamples (weights = how often a row was drawn).
Working on the whole batch in NumPy makes a hundred starts or a thousand resamples cost little more
than one. `analysis.fitting.newton` minimises what is defined here.

Per observation i and term j, with x standardised so that the Hessian is well conditioned:

    u_ij = c_j - k_j * x_ij(s_j)        log of the term; c, k, s are entries of theta
    log L_i = log sum_j exp(u_ij)
    r_i = log L_i - log y_i             (kind "log"), or L_i - y_i (kind "raw")
    F = sum_i w_i * h(r_i)              h Huber's function, or r^2/2 when delta is infinite

Letters: S batch, n observations, P parameters, J terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

# x, dx/ds, d2x/ds2 of a term whose variable has a parameter of its own, each (S, n) for s (S,)
Shape = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One summand of the law as the solver sees it: indices into theta, and its variable."""

    c: int
    k: int | None = None
    s: int | None = None
    x: np.ndarray | None = None  # (n,) when it has no shape parameter
    shape: Shape | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is minimised; theta is kept inside [lower, upper]."""

    terms: tuple[Term, ...]
    y: np.ndarray  # (n,) log of the observed loss for kind "log", the loss itself for "raw"
    lower: np.ndarray  # (P,), or (S, P) for a box per member, as profiles need
    upper: np.ndarray
    kind: Literal["log", "raw"] = "log"
    delta: float = 1e-3  # np.inf for least squares

    def at(self, delta: float) -> Problem:
        """The same problem with another Huber threshold."""
        return replace(self, delta=delta)


def batch_size(problem: Problem) -> int:
    """Members per batch whose largest array, the Jacobian (S, P, n), stays in a core's cache.

    48,000 numbers (384 KB) were fastest of 12,000 to 120,000 on the machine this was written on.
    """
    return max(4, 48_000 // (problem.lower.shape[-1] * len(problem.y)))


def predict(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """log L, (S, n), of parameter vectors theta (S, P)."""
    u = np.stack([log_term(t, theta)[0] for t in problem.terms])
    top = u.max(axis=0)
    return top + np.log(np.exp(u - top).sum(axis=0))


def residuals(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """r, (S, n)."""
    log_loss = predict(problem, theta)
    return (log_loss if problem.kind == "log" else np.exp(log_loss)) - problem.y


def huber(r: np.ndarray, delta: float) -> np.ndarray:
    """r^2/2 up to delta, delta (|r| - delta/2) beyond; in SUM, not mean, over observations."""
    size = np.abs(r)
    if np.isinf(delta):
        return 0.5 * r * r
    return np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def objective(problem: Problem, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F, (S,)."""
    return (weights * huber(residuals(problem, theta), problem.delta)).sum(axis=-1)


def derivatives(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, tail: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F (S,), its gradient (S, P) and Hessian (S, P, P), all analytic.

    Beyond delta Huber's second derivative is 0; what is left there is the curvature of the law.

    Args:
        tail: slope beyond delta where it is not delta (see `_onward`); F stays Huber's.
    """
    n_batch, n_params = theta.shape
    parts = [log_term(t, theta) for t in problem.terms]
    u = np.stack([p[0] for p in parts])
    top = u.max(axis=0)
    share = np.exp(u - top)
    total = share.sum(axis=0)
    is_log = problem.kind == "log"
    log_loss = top + np.log(total)
    share /= total
    if not is_log:
        share *= np.exp(log_loss)
    r = (log_loss if is_log else np.exp(log_loss)) - problem.y
    value = (weights * huber(r, problem.delta)).sum(axis=-1)
    inside = np.abs(r) <= problem.delta
    if tail is None:
        slope = weights * np.clip(r, -problem.delta, problem.delta)  # w h'(r)
    else:
        slope = weights * np.where(inside, r, np.sign(r) * tail)
    bend = weights * inside  # w h''(r)

    jacobian = np.zeros((n_batch, n_params, len(problem.y)))
    gradient = np.zeros((n_batch, n_params))
    hessian = np.zeros((n_batch, n_params, n_params))
    for term, q, (_, first, second) in zip(problem.terms, share, parts, strict=True):
        pull = slope * q
        along = [pull if da is None else pull * da for _, da in first]
        for i, (a, da) in enumerate(first):
            jacobian[:, a] += q if da is None else q * da
            slope_a = along[i].sum(axis=-1)
            gradient[:, a] += slope_a
            # u is linear in c with slope 1: its second derivatives are first ones of the others
            hessian[:, term.c, a] += slope_a
            if a == term.c:
                continue
            hessian[:, a, term.c] += slope_a
            for b, db in first[i:]:
                extra = np.matmul(along[i][:, None, :], np.broadcast_to(db, q.shape)[..., None])
                hessian[:, a, b] += extra[:, 0, 0]
                if a != b:
                    hessian[:, b, a] += extra[:, 0, 0]
        for a, b, dab in second:
            extra = (pull * dab).sum(axis=-1)
            hessian[:, a, b] += extra
            if a != b:
                hessian[:, b, a] += extra
    outer = bend - slope if is_log else bend
    hessian += np.matmul(jacobian * outer[:, None, :], jacobian.transpose(0, 2, 1))
    return value, gradient, hessian


def log_term(term: Term, theta: np.ndarray):
    """u (S, n); its first derivatives [(index, array)], None for 1; its second [(a, b, array)].

    The derivative by c comes first and is 1; second derivatives that involve c are 0 and left out.
    """
    c = theta[:, term.c, None]
    if term.k is None:
        size = len(term.x) if term.x is not None else 1
        return np.broadcast_to(c, (len(theta), size)), [(term.c, None)], []
    k = theta[:, term.k, None]
    if term.shape is None:
        return c - k * term.x, [(term.c, None), (term.k, -term.x)], []
    x, dx, d2x = term.shape(theta[:, term.s])
    first = [(term.c, None), (term.k, -x), (term.s, -k * dx)]
    second = [(term.k, term.s, -dx), (term.s, term.s, -k * d2x)]
    return c - k * x, first, second
