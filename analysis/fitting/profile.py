"""Profile likelihood: how the best objective rises as one parameter is held away from its optimum.

Where it rises slowly the data do not hold the parameter, and the interval is open on that side: the
honest answer that a curvature at the optimum cannot give. For Huber's loss the rise is scaled so
that it is chi-square distributed to first order; for least squares that is the usual F test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.fitting import intervals, newton, objective
from analysis.fitting.intervals import Intervals

if TYPE_CHECKING:
    from analysis.fitting.fit import Scaled

_POINTS = 25  # per side and sweep
_REACH = 4.0  # first sweep, in standard errors
_WIDEN = 6.0  # each further sweep reaches this much farther
_SWEEPS = 3
_ROUNDS = 4  # of closing in on the crossing
_FINE = 0.05  # of the limit's root: a bracket this narrow is interpolated


@dataclass(frozen=True, slots=True)
class Profile:
    """One parameter's profile; `deviance` is compared with `limit`."""

    name: str
    values: np.ndarray  # natural values held, ascending
    deviance: np.ndarray
    limit: float  # squared Student t at the confidence asked for
    low: float | None  # where the deviance crosses the limit; None: it never does
    high: float | None


def profile_intervals(scaled: Scaled, theta: np.ndarray, confidence: float) -> Intervals:
    """Intervals of every parameter, open sides said in words."""
    low, high, problems = {}, {}, []
    for p in scaled.law.params:
        found = profile(scaled, theta, p.name, confidence)
        low[p.name], high[p.name] = found.low, found.high
        if found.low is None and p.kind == "coefficient":
            low[p.name] = 0.0  # the end of its range
        sides = [side for side, end in (("below", found.low), ("above", found.high)) if end is None]
        if sides:
            problems.append(
                f"the data do not bound {p.name} from {' or '.join(sides)}: the objective stays "
                f"flat to {_reached(found, sides[-1]):.3g}"
            )
    return Intervals("profile likelihood, Student t", low, high, problems=tuple(problems))


def profile(scaled: Scaled, theta: np.ndarray, name: str, confidence: float = 0.95) -> Profile:
    """Hold one parameter at values around its optimum and minimise over the others.

    Args:
        theta: the optimum (P,) of `scaled`.
    """
    from scipy.special import stdtrit

    index = scaled.law.names.index(name)
    problem, theta = _pinned(scaled, theta, index)
    dof = len(problem.y) - len(theta)
    limit = float(stdtrit(dof, 0.5 + confidence / 2)) ** 2
    scale = _deviance_scale(problem, theta)
    best = float(objective.objective(problem, theta[None], np.ones((1, len(problem.y))))[0])
    spread = _spread(problem, theta, index, scale)
    held, deviance = [theta[index]], [0.0]
    ends = []
    for sign in (-1.0, 1.0):
        xs, ds = _side(problem, theta, index, sign, spread, limit, scale, best)
        ends.append(_crossing(theta[index], xs, ds, limit))
        held += list(xs)
        deviance += list(ds)
    order = np.argsort(held)
    natural = _natural(scaled, index, np.array(held)[order])
    low, high = (None if e is None else float(_natural(scaled, index, e)) for e in ends)
    return Profile(name, natural, np.array(deviance)[order], limit, low, high)


def _side(problem, theta, index, sign, spread, limit, scale, best):
    """Held values outward from the optimum and their deviances, dense where they pass the limit."""
    xs, ds, thetas = np.array([theta[index]]), np.zeros(1), theta[None]

    def hold(x, start):
        nonlocal xs, ds, thetas
        found = _hold(problem, start, index, x)
        order = np.argsort(sign * np.concatenate([xs, x]), kind="stable")
        xs = np.concatenate([xs, x])[order]
        rise = 2 * scale * np.maximum(found.objective - best, 0)
        ds = np.concatenate([ds, rise])[order]
        thetas = np.concatenate([thetas, found.theta])[order]

    begin, reach = 0.0, _REACH
    for _ in range(_SWEEPS):
        x = theta[index] + sign * spread * np.linspace(begin, reach, _POINTS + 1)[1:]
        x = x[(x >= problem.lower[index]) & (x <= problem.upper[index])]
        if not len(x):
            break
        hold(x, thetas[-1])
        if ds[-1] > limit:
            break
        begin, reach = reach, reach * _WIDEN
    # a curvature says little of a curve that is flat and then steep: close in on the crossing
    for _ in range(_ROUNDS):
        i = _first_beyond(ds, limit)
        if i is None or np.sqrt(ds[i]) - np.sqrt(ds[i - 1]) < _FINE * np.sqrt(limit):
            break
        hold(np.linspace(xs[i - 1], xs[i], _POINTS // 2 + 2)[1:-1], thetas[i - 1])
    return xs[1:], ds[1:]


def _first_beyond(ds, limit) -> int | None:
    beyond = np.flatnonzero(ds > limit)
    return int(beyond[0]) if len(beyond) else None


def _hold(problem, start, index, x) -> newton.Solution:
    """Minimise with theta[index] held at each of x."""
    begin = start + (x - start[index])[:, None] * _follow(problem, start, index)
    begin[:, index] = x
    lower = np.broadcast_to(problem.lower, begin.shape).copy()
    upper = np.broadcast_to(problem.upper, begin.shape).copy()
    lower[:, index] = upper[:, index] = x
    boxed = replace(problem, lower=lower, upper=upper)
    return newton.continued(boxed, begin, first_delta=max(problem.delta, 1e-2))


def _follow(problem, theta, index) -> np.ndarray:
    """How the other parameters move with the held one, to first order; 1 for itself."""
    rows = intervals.jacobian(problem, theta)
    free = np.arange(len(theta)) != index
    out = np.ones(len(theta))
    out[free] = -np.linalg.lstsq(rows[:, free], rows[:, index], rcond=None)[0]
    return out


def _crossing(at: float, xs: np.ndarray, ds: np.ndarray, limit: float) -> float | None:
    """Where the deviance first passes the limit, by linear interpolation of its root."""
    ds, xs = np.concatenate([[0.0], ds]), np.concatenate([[at], xs])
    i = _first_beyond(ds, limit)
    if i is None:
        return None
    root = np.sqrt(ds)  # nearly linear in the parameter
    share = (np.sqrt(limit) - root[i - 1]) / (root[i] - root[i - 1])
    return float(xs[i - 1] + share * (xs[i] - xs[i - 1]))


def _pinned(scaled: Scaled, theta: np.ndarray, index: int):
    """The problem in coordinates where theta[index] alone is the natural parameter.

    For a coefficient that means measuring its term at x = 0; the poor conditioning that would
    bring does no harm, because the coefficient is then held.
    """
    problem, param = scaled.problem, scaled.law.params[index]
    if param.kind != "coefficient":
        return problem, theta.copy()
    terms = []
    for term in problem.terms:
        if term.c == index and term.k is not None:
            shift = scaled.to_natural[index, term.k]  # anchor in units of the spread
            term = replace(
                term,
                x=None if term.x is None else term.x + shift,
                shape=None if term.shape is None else _shifted(term.shape, shift),
            )
        terms.append(term)
    moved = theta.copy()
    moved[index] = scaled.to_natural[index] @ theta
    lower, upper = problem.lower.copy(), problem.upper.copy()
    lower[index], upper[index] = -np.inf, np.inf
    return replace(problem, terms=tuple(terms), lower=lower, upper=upper), moved


def _shifted(shape: objective.Shape, shift: float) -> objective.Shape:
    def moved(s):
        x, dx, d2x = shape(s)
        return x + shift, dx, d2x

    return moved


def _natural(scaled: Scaled, index: int, held):
    if scaled.law.params[index].kind == "coefficient":
        return np.exp(np.clip(held, -700, 700))
    return np.asarray(held) * scaled.to_natural[index, index]


def _deviance_scale(problem: objective.Problem, theta: np.ndarray) -> float:
    """E[h''] / E[h'^2] of the residuals: what turns a rise of F into half a chi-square.

    E[h''] is the share of residuals within delta. Few are when delta is below the noise, and the
    fit itself puts some there; so it is read from the density over one standard deviation.
    """
    r = objective.residuals(problem, theta[None])[0]
    dof = len(r) - len(theta)
    slope = np.clip(r, -problem.delta, problem.delta)
    square = (slope @ slope) / dof
    width = max(problem.delta, 1.4826 * float(np.median(np.abs(r))) * np.sqrt(len(r) / dof))
    inside = np.mean(np.abs(r) <= width) * min(1.0, problem.delta / width)
    return float(max(inside, 1 / len(r)) / max(square, 1e-300))


def _spread(problem: objective.Problem, theta: np.ndarray, index: int, scale: float) -> float:
    """A standard error to choose the grid by; it decides nothing else."""
    whole = intervals.jacobian(problem, theta)
    r = objective.residuals(problem, theta[None])[0]
    inside = max(float(np.mean(np.abs(r) <= problem.delta)), 1 / len(r))
    bread = whole.T @ whole * inside * scale
    values, vectors = np.linalg.eigh(bread)
    values = np.maximum(values, 1e-10 * values[-1])
    covariance = (vectors / values) @ vectors.T
    return float(np.sqrt(covariance[index, index]))


def _reached(found: Profile, side: str) -> float:
    return float(found.values[0] if side == "below" else found.values[-1])
