"""Newton's method for a batch of fits: exponents step in a trust region, coefficients follow.

A law is linear in its coefficients, so for given exponents and shapes the best coefficients are
about one linear solve away. Each step therefore eliminates them (variable projection in Newton's
form: a Schur complement), bounds only how far the exponents go, and moves the coefficients in their
own units and not in their logarithms. Along the curved valleys of these laws, where a floor and a
slowly falling term trade places, that keeps the path on the valley's bottom; and a term that the
data do not need reaches zero in a step, where its logarithm would creep towards minus infinity.

Exact second derivatives make every path end at machine precision instead of where a quasi-Newton
method ran out of patience (Hoffmann et al.'s early stop; docs/laws.md).
Source: Golub and Pereyra (1973), SIAM J. Numer. Anal. 10, 413.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fitting.objective import Problem, derivatives, objective, residuals

_EXACT = 1e-22  # a gain below the rounding of squared residuals: the fit is exact
_LAG = 0.1  # coefficients that could gain this share of a step's gain are solved for again
_GOOD = 0.9  # share of its promise from which on a step has left no coefficient behind
_FLAT = 1e-12  # eigenvalues below this share of the largest are taken for this much
_TINY = 1e-100  # and below this there is no curvature: steps stay finite when squared


@dataclass(frozen=True, slots=True)
class Solution:
    """Where each member of the batch ended."""

    theta: np.ndarray  # (S, P)
    objective: np.ndarray  # (S,)
    converged: np.ndarray  # (S,) bool: the predicted gain of a further step is negligible
    steps: int


def minimise(
    problem: Problem,
    theta: np.ndarray,
    weights: np.ndarray | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-13,
) -> Solution:
    """Step until no step gains, kept in the box.

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
    split = _Split.of(problem)
    best = np.empty(n_batch)
    # what rounding of y alone can move F by: eps |y| sum |residual|, with the sum at most sqrt(2 n F);
    # when a law fits to 1e-5 this is more than any share of F
    rounding = np.finfo(float).eps * np.abs(problem.y).max() * np.sqrt(2 * n_obs)
    radius = np.ones(n_batch)  # theta is standardised, so 1 is a large step
    converged = np.zeros(n_batch, dtype=bool)
    active = np.arange(n_batch)
    current = theta.copy()
    f, g, h = derivatives(problem, current, weights)
    step_count = 0
    while len(active) and step_count < max_steps:
        step_count += 1
        box = lower[active], upper[active]
        moved, length, gain, expected = _step(split, box, current, g, h, radius[active])
        new = derivatives(problem, moved, weights[active])
        small = gain <= tolerance * f + rounding * np.sqrt(f) + _EXACT
        fine = small | (f - new[0] > _GOOD * expected)
        moved, new = _coefficients_follow(
            problem, split, box, weights[active], moved, new, np.maximum(f, new[0]) - new[0], fine
        )
        better = new[0] <= f
        ratio = (f - new[0]) / np.maximum(expected, 1e-300)
        bound = radius[active]
        wider = np.where((ratio > 0.75) & (length > 0.8 * bound), 3.0, 1.0) * bound
        radius[active] = np.where(better & (ratio > 0.25), np.minimum(wider, 1e3), 0.3 * length)
        current = np.where(better[:, None], moved, current)
        f = np.where(better, new[0], f)
        g = np.where(better[:, None], new[1], g)
        h = np.where(better[:, None, None], new[2], h)
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
        # where every residual lies inside the zone, a smaller one that holds them all changes nothing
        largest = np.abs(residuals(problem, solution.theta)).max()
        delta = max(factor * min(delta, largest), problem.delta)
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
    moved, *_ = _step(_Split.of(wide), box, theta, g, h, np.full(len(theta), np.inf))
    better = objective(narrow, moved, weights) <= objective(narrow, theta, weights)
    return np.where(better[:, None], moved, theta)


@dataclass(frozen=True, slots=True)
class _Split:
    """Which entries of theta are log coefficients, which the rest, and the size of the target."""

    c: np.ndarray
    k: np.ndarray
    level: float

    @classmethod
    def of(cls, problem: Problem) -> _Split:
        c = np.unique([t.c for t in problem.terms])
        k = np.setdiff1d(np.arange(problem.lower.shape[-1]), c)
        y = problem.y
        return cls(c, k, float(np.exp(y.mean()) if problem.kind == "log" else np.abs(y).mean()))

    def coefficients(self, box, theta: np.ndarray) -> np.ndarray:
        """The coefficients (S, J); 1 for one that a profile holds, whose logarithm may be any."""
        lower, upper = box[0][:, self.c], box[1][:, self.c]
        return np.exp(np.where(lower == upper, 0.0, theta[:, self.c]))


def _step(split: _Split, box, theta, g, h, radius):
    """theta after a step, its length, the gain a free one promises, and the gain this one promises."""
    g, h = _in_own_units(split, box, theta, g, h)
    c, k = split.c, split.k
    g_c, g_k, cross = g[:, c], g[:, k], h[:, c[:, None], k]
    solve = _solver(h[:, c[:, None], c])
    follow, offset = solve(cross), solve(g_c[..., None])[..., 0]
    back = cross.transpose(0, 2, 1)
    reduced = h[:, k[:, None], k] - np.matmul(back, follow)
    slope = g_k - np.matmul(back, offset[..., None])[..., 0]
    size, vectors = _spectrum(reduced)
    along = np.matmul(vectors.transpose(0, 2, 1), slope[..., None])[..., 0]
    shift = _shift(along, size, radius)
    step_k = -np.matmul(vectors, (along / (size + shift[:, None]))[..., None])[..., 0]
    lower, upper = box
    step_k = np.clip(theta[:, k] + step_k, lower[:, k], upper[:, k]) - theta[:, k]
    step_c = -offset - np.matmul(follow, step_k[..., None])[..., 0]
    # far from the optimum Huber's function may have no curvature at all
    far = np.abs(step_c).max(axis=-1) / split.level
    back_off = np.minimum(1.0, radius / np.maximum(far, 1e-300))
    step_k, step_c = step_k * back_off[:, None], step_c * back_off[:, None]

    moved = theta.copy()
    moved[:, k] += step_k
    moved[:, c] = _log_coefficients(split, box, theta, step_c)
    step = np.zeros_like(theta)
    step[:, k] = step_k
    dropped = (moved[:, c] <= lower[:, c]) & (step_c < 0)
    step[:, c] = np.where(dropped, -split.coefficients(box, theta), step_c)
    length = np.maximum(np.sqrt((step_k * step_k).sum(axis=-1)), far * back_off)
    # what a step of any length would gain: a search hemmed in by its radius has not converged
    gain = 0.5 * (along * along / size).sum(axis=-1) + 0.5 * (g_c * offset).sum(axis=-1)
    curve = np.matmul(h, step[..., None])[..., 0]
    expected = -(g * step).sum(axis=-1) - 0.5 * (step * curve).sum(axis=-1)
    return moved, length, gain, expected


def _coefficients_follow(problem, split, box, weights, theta, found, gained, finished):
    """Solve for the coefficients once more where the exponents' step has left them behind.

    Args:
        found: F, gradient and Hessian at theta.
        gained: what the step that led to theta gained.
        finished: members that need no more of it.
    """
    if finished.all():
        return theta, found
    f, g, h = found
    own_g, own_h = _in_own_units(split, box, theta, g, h)
    c = split.c
    offset = _solver(own_h[:, c[:, None], c])(own_g[:, c, None])[..., 0]
    lag = ~finished & (0.5 * (own_g[:, c] * offset).sum(axis=-1) > _LAG * gained + 1e-12 * f)
    if not lag.any():
        return theta, found
    which = np.flatnonzero(lag)
    moved = theta[which]
    moved[:, c] = _log_coefficients(split, (box[0][which], box[1][which]), moved, -offset[which])
    f_new, g_new, h_new = derivatives(problem, moved, weights[which])
    lower = f_new < f[which]
    which = which[lower]
    theta, f, g, h = theta.copy(), f.copy(), g.copy(), h.copy()
    theta[which], f[which] = moved[lower], f_new[lower]
    g[which], h[which] = g_new[lower], h_new[lower]
    return theta, (f, g, h)


def _in_own_units(split, box, theta, g, h):
    """Gradient and Hessian with coefficients in place of their logarithms.

    A parameter that wants out of its box is held: its slope is 0 and its curvature 1.
    """
    lower, upper = box
    held = ((theta <= lower) & (g > 0)) | ((theta >= upper) & (g < 0)) | (lower == upper)
    unit = np.ones_like(theta)
    unit[:, split.c] = 1 / split.coefficients(box, theta)
    h = h.copy()
    h[:, split.c, split.c] -= g[:, split.c]  # d2F/dlog c2 = c dF/dc + c2 d2F/dc2
    scale = np.where(held, 0.0, unit)
    h *= scale[:, :, None] * scale[:, None, :]
    diagonal = np.arange(h.shape[1])
    h[:, diagonal, diagonal] += held
    return g * scale, h


def _log_coefficients(split, box, theta, step):
    """log(coefficient + step), kept in the box; below zero is its lower end."""
    c = split.c
    with np.errstate(divide="ignore"):
        moved = np.log(np.maximum(split.coefficients(box, theta) + step, 0.0))
    return np.clip(moved, box[0][:, c], box[1][:, c])


def _spectrum(h):
    """|eigenvalues|, none below a share of the largest, and eigenvectors."""
    values, vectors = np.linalg.eigh(h)
    size = np.abs(values)
    return np.maximum(size, _FLAT * size.max(axis=-1, keepdims=True) + _TINY), vectors


def _solver(h):
    """A function that applies |h|^-1."""
    size, vectors = _spectrum(h)
    back = vectors.transpose(0, 2, 1)
    return lambda right: np.matmul(vectors, np.matmul(back, right) / size[..., None])


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
