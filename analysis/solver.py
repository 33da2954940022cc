"""Many small robust fits at once: L = sum of exp(terms), by Newton steps in a trust region, on a batch.

A batch is S parameter vectors theta (S, P), each with its own weights on the n observations: S
random starts of one data set, or S bootstrap resamples (weights = how often a row was drawn).
Working on the whole batch in NumPy makes a hundred starts or a thousand resamples cost little more
than one, and exact second derivatives make every path end at machine precision instead of where a
quasi-Newton method ran out of patience (Hoffmann et al.'s early stop; PAPER.md, data/README.md).

Per observation i and term j, with x standardised so that the Hessian is well conditioned:

    u_ij = c_j - k_j * x_ij(s_j)        log of the term; c, k, s are entries of theta
    log L_i = log sum_j exp(u_ij)
    r_i = log L_i - log y_i             (kind "log"), or L_i - y_i (kind "raw")
    F = sum_i w_i * h(r_i)              h Huber's function, or r^2/2 when delta is infinite

Letters: S batch, n observations, P parameters, J terms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

# x, dx/ds, d2x/ds2 of a term whose variable has a parameter of its own, each (S, n) for s (S,)
Shape = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


_EXACT = 1e-22  # a gain below the rounding of squared residuals: the fit is exact


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
        return Problem(
            terms=self.terms,
            y=self.y,
            lower=self.lower,
            upper=self.upper,
            kind=self.kind,
            delta=delta,
        )


@dataclass(frozen=True, slots=True)
class Solution:
    """Where each member of the batch ended."""

    theta: np.ndarray  # (S, P)
    objective: np.ndarray  # (S,)
    converged: np.ndarray  # (S,) bool: the predicted gain of a further step is negligible
    steps: int


def batch_size(problem: Problem) -> int:
    """Members per batch whose largest array, the Jacobian (S, P, n), stays in a core's cache.

    24,000 numbers (192 KB) were fastest of 9,600 to 240,000 on the machine this was written on.
    """
    return max(4, 24_000 // (problem.lower.shape[-1] * len(problem.y)))


def predict(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """log L, (S, n), of parameter vectors theta (S, P)."""
    u = np.stack([_log_term(t, theta)[0] for t in problem.terms])
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
    parts = [_log_term(t, theta) for t in problem.terms]
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
    hessian = np.zeros((n_batch, n_params, n_params))
    for term, q, (_, first, second) in zip(problem.terms, share, parts, strict=True):
        pull = slope * q
        for a, da in first:
            jacobian[:, a] += q * da
            for b, db in first:
                if b >= a:
                    extra = (pull * da * db).sum(axis=-1)
                    hessian[:, a, b] += extra
                    if a != b:
                        hessian[:, b, a] += extra
        for a, b, dab in second:
            extra = (pull * dab).sum(axis=-1)
            hessian[:, a, b] += extra
            if a != b:
                hessian[:, b, a] += extra
        del term
    gradient = np.matmul(jacobian, slope[..., None])[..., 0]
    outer = bend - slope if is_log else bend
    hessian += np.matmul(jacobian * outer[:, None, :], jacobian.transpose(0, 2, 1))
    return value, gradient, hessian


def minimise(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-13,
) -> Solution:
    """Newton steps with |eigenvalues| in a trust region, kept in the box, until none gains.

    The region is round in theta and not in the Hessian's metric: along the flat, curved valleys
    of these laws, damping relative to the largest eigenvalue would crawl.

    Args:
        theta: starts, (S, P).
        weights: (S, n) or (n,); ones when absent.
        tolerance: a member is finished when its predicted gain is below this share of F.
    """
    n_batch, n_obs = len(theta), len(problem.y)
    weights = np.broadcast_to(1.0 if weights is None else weights, (n_batch, n_obs))
    theta = np.clip(theta, problem.lower, problem.upper)
    lower = np.broadcast_to(problem.lower, theta.shape)
    upper = np.broadcast_to(problem.upper, theta.shape)
    best = objective(problem, theta, weights)
    # what rounding of y alone can move F by: eps |y| sum |residual|, with the sum at most sqrt(2 n F);
    # when a law fits to 1e-5 this is more than any share of F
    rounding = np.finfo(float).eps * np.abs(problem.y).max() * np.sqrt(2 * n_obs)
    radius = np.ones(n_batch)  # of the trust region; theta is standardised, so 1 is a large step
    converged = np.zeros(n_batch, dtype=bool)
    active = np.arange(n_batch)
    current = theta[active]
    f, g, h = derivatives(problem, current, weights[active])
    step_count = 0
    while len(active) and step_count < max_steps:
        step_count += 1
        box = lower[active], upper[active]
        moved, gain, expected = _step(box, current, g, h, radius[active])
        f_new, g_new, h_new = derivatives(problem, moved, weights[active])
        better = f_new <= f
        small = gain <= tolerance * f + rounding * np.sqrt(f) + _EXACT
        length = np.sqrt(((moved - current) ** 2).sum(axis=-1))
        ratio = (f - f_new) / np.maximum(expected, 1e-300)
        wider = (
            np.where((ratio > 0.75) & (length > 0.8 * radius[active]), 3.0, 1.0) * radius[active]
        )
        radius[active] = np.where(better & (ratio > 0.25), np.minimum(wider, 1e3), 0.3 * length)
        keep = better[:, None]
        current = np.where(keep, moved, current)
        g = np.where(keep, g_new, g)
        h = np.where(keep[..., None], h_new, h)
        f = np.where(better, f_new, f)
        finished = small | (radius[active] < 1e-14)
        theta[active], best[active] = current, f
        converged[active[small]] = True
        go = ~finished
        active, current, f, g, h = active[go], current[go], f[go], g[go], h[go]
    return Solution(theta, best, converged, step_count)


def continued(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray | None = None,
    first_delta: float = 1.0,
    factor: float = 0.3,
    max_steps: int = 200,
) -> Solution:
    """Minimise for falling delta, each from where the last ended.

    Near delta = 0 the surface is a polytope's and single paths stall on its edges; a wide
    quadratic zone first leads them to the right face.
    """
    n_batch, n_obs = len(theta), len(problem.y)
    weights = np.broadcast_to(1.0 if weights is None else weights, (n_batch, n_obs))
    delta = first_delta
    steps = 0
    while np.isfinite(problem.delta) and delta > problem.delta * 1.0001:
        wide = problem.at(delta)
        solution = minimise(wide, theta, weights, max_steps=60, tolerance=1e-6)
        delta = max(delta * factor, problem.delta)
        theta = _onward(wide, problem.at(delta), solution.theta, weights)
        steps += solution.steps
    last = minimise(problem, theta, weights, max_steps=max_steps)
    return Solution(last.theta, last.objective, last.converged, steps + last.steps)


def _onward(wide: Problem, narrow: Problem, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Follow the optimum from one delta to a smaller one, with the quadratic zone held fixed.

    At the optimum the residuals inside the zone scale with delta, so at the smaller delta all of
    them would start outside it, where Huber's function has no curvature to steer by.
    """
    _, g, h = derivatives(wide, theta, weights, tail=narrow.delta)
    box = np.broadcast_to(wide.lower, theta.shape), np.broadcast_to(wide.upper, theta.shape)
    moved, *_ = _step(box, theta, g, h, np.full(len(theta), np.inf))
    better = objective(narrow, moved, weights) <= objective(narrow, theta, weights)
    return np.where(better[:, None], moved, theta)


def _log_term(term: Term, theta: np.ndarray):
    """u (S, n); its first derivatives [(index, array)]; its second [(a, b, array)]."""
    c = theta[:, term.c, None]
    if term.k is None:
        ones = np.ones((1, 1))
        size = len(term.x) if term.x is not None else 1
        return np.broadcast_to(c, (len(theta), size)), [(term.c, ones)], []
    k = theta[:, term.k, None]
    if term.shape is None:
        return c - k * term.x, [(term.c, np.ones((1, 1))), (term.k, -term.x)], []
    x, dx, d2x = term.shape(theta[:, term.s])
    first = [(term.c, np.ones((1, 1))), (term.k, -x), (term.s, -k * dx)]
    second = [(term.k, term.s, -dx), (term.s, term.s, -k * d2x)]
    return c - k * x, first, second


def _step(box, theta, g, h, radius):
    """The step within the radius, the gain a free one promises, and the gain this one promises."""
    lower, upper = box
    at_low = (theta <= lower) & (g > 0)
    at_high = (theta >= upper) & (g < 0)
    held = at_low | at_high | (lower == upper)
    if held.any():  # a parameter that wants out of the box is held for this step
        g = np.where(held, 0.0, g)
        free = ~held
        h = h * free[:, :, None] * free[:, None, :]
        h = h + np.eye(h.shape[1]) * held[:, :, None]
    values, vectors = np.linalg.eigh(h)
    size = np.abs(values)
    scale = size.max(axis=-1, keepdims=True) + 1e-300
    size = np.maximum(size, 1e-12 * scale)
    along = np.matmul(vectors.transpose(0, 2, 1), g[..., None])[..., 0]
    shift = _shift(along, size, radius)
    step = -np.matmul(vectors, (along / (size + shift[:, None]))[..., None])[..., 0]
    moved = np.clip(theta + step, lower, upper)
    # what a step of any length would gain: a search hemmed in by its radius has not converged
    gain = 0.5 * (along * along / size).sum(axis=-1)
    step = moved - theta
    curve = np.matmul(h, step[..., None])[..., 0]
    expected = -(g * step).sum(axis=-1) - 0.5 * (step * curve).sum(axis=-1)
    return moved, gain, expected


def _shift(along: np.ndarray, size: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """What to add to the eigenvalues so that the step is no longer than the radius.

    Source: More and Sorensen (1983), SIAM J. Sci. Stat. Comput. 4, 553: Newton on 1/length.
    """
    shift = np.zeros(len(along))
    for _ in range(8):
        step = along / (size + shift[:, None])
        length = np.sqrt((step * step).sum(axis=-1))
        over = length > 1.01 * radius
        if not over.any():
            break
        slope = (step * step / (size + shift[:, None])).sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            more = length**2 / slope * (length - radius) / radius
        shift = np.where(over, shift + more, shift)
    return shift
