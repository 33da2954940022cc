"""The best of several starts: exponents at random, coefficients by non-negative least squares.

A law is linear in its coefficients, so the first stage searches the exponents and shapes alone and
solves for the coefficients at each step (variable projection; Golub and Pereyra 1973, SIAM J. Numer.
Anal. 10, 413, with Kaufman's derivative), on the relative residuals L/y - 1, which are the log
residuals near the solution. Starts that meet there walk the rest of the way once, for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import OptimizeResult, least_squares, lsq_linear, nnls

from analysis.fitting.objective import Objective
from analysis.progress import track

_AGREE = 1e-6  # starts whose objectives differ by less than this share found the same optimum
_SAME_PLACE = 1e-3  # in standardised parameters
MANY, SAMPLE = 100_000, 20_000  # beyond so many rows the starts run on so many of them
OTHERS = 3  # further optima that profiles start from too
_FOLLOWED = 4  # places that are followed to their optimum, of a law without terms
_TAIL = 8.0  # medians: a residual beyond may have led the quadratic objective astray
_CONCENTRATE = 3  # steps towards the rows that a law is near to
_SCREENED = 60  # start points looked at for each that is followed, of a law without terms
# A coefficient's share of the loss, or distance to a bound, that is tried at the bound
_EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Search:
    """The best of several starts."""

    theta: np.ndarray  # (P,)
    objective: float
    converged: bool
    n_starts: int
    n_agree: int
    others: tuple[np.ndarray, ...] = ()  # further optima, best first, for profiles to start from


def search(objective: Objective, n_starts: int, rng: np.random.Generator) -> Search:
    """Minimise from every start; the best, and how many starts found it."""
    few = objective
    if len(objective.y) > MANY:  # a sample finds the basin; all rows find its bottom
        few = objective.rows(np.sort(rng.choice(len(objective.y), SAMPLE, replace=False)))
    begin = starts(objective, n_starts, rng) if objective.terms else _screened(few, n_starts, rng)
    found, counts = _followed(objective, few, few, begin)
    near = _near(few, min(found, key=lambda f: f.cost).x, begin[0])
    if near is not None:
        found, counts = _followed(objective, few, near, begin)
    costs = np.array([f.cost for f in found])
    best = found[int(costs.argmin())]
    agree = costs <= best.cost * (1 + _AGREE) + 1e-15
    order = [i for i in np.argsort(costs, kind="stable") if not agree[i]]
    return Search(
        theta=best.x,
        objective=float(best.cost),
        converged=best.status > 0,
        n_starts=n_starts,
        n_agree=int(np.array(counts)[agree].sum()),
        others=tuple(found[i].x for i in order[:OTHERS]),
    )


def _followed(
    objective: Objective, few: Objective, first: Objective, begin: np.ndarray
) -> tuple[list[OptimizeResult], list[int]]:
    """Optima that starts lead to, on the rows of `first` and then on all, and how many starts to each."""
    ends = [_wide(first, start) for start in track(begin, "starts of the search")]
    places, counts = _distinct(ends)
    if not objective.terms:  # curved valleys: long walks, so only from where few are left to go
        places, counts = places[:_FOLLOWED], counts[:_FOLLOWED]
    # rows that `first` leaves out must not draw the first zones back to them
    zones = [float(np.abs(first.residuals(place)).max()) for place in places]
    if few is not objective:
        return [_on_all(objective, few.descend(places[0], widest=zones[0]))], counts[:1]
    found = [objective.descend(p, widest=z) for p, z in zip(places, zones, strict=True)]
    return [_settled(objective, f) for f in found], counts


def _near(few: Objective, theta: np.ndarray, start: np.ndarray) -> Objective | None:
    """The rows that a law is near to without the others, where theta is a lesser optimum that these caused.

    The quadratic objective follows rows far off, and Huber's may not come back from there. Found by fits to the
    rows nearest to the last one. Source: Rousseeuw and Van Driessen (2006), Data Min. Knowl. Discov. 12, 29.
    """
    size, n = np.abs(few.residuals(theta)), len(few.y)
    kept = (3 * n + 3) // 4
    if np.isinf(few.delta) or size.max() < _TAIL * np.median(size) or kept <= len(theta) + 1:
        return None
    for _ in range(_CONCENTRATE):
        near = few.rows(np.sort(np.argsort(size, kind="stable")[:kept]))
        found = _wide(near, start)
        size = np.abs(few.residuals(found.x))
    return near if few.value(found.x) < few.value(theta) else None


def _on_all(objective: Objective, found: OptimizeResult) -> OptimizeResult:
    """The optimum of many rows from that of a sample, by stages that a bar can show."""
    for tolerance in track((1e-4, 1e-6, 1e-8, 1e-10, 1e-12), "fit on all rows"):
        found = objective.minimise(found.x, tolerance=tolerance)
    return _settled(objective, found)


def onward(objective: Objective, best: Search, better: np.ndarray) -> Search:
    """The optimum below a theta that no start had found."""
    found = _settled(objective, objective.minimise(better))
    return replace(
        best, theta=found.x, objective=float(found.cost), converged=found.status > 0, n_agree=1
    )


def _settled(objective: Objective, found: OptimizeResult) -> OptimizeResult:
    """The optimum with parameters that crept to a bound put on it, where that is no worse."""
    share = np.ones(len(found.x))
    c = _coefficients(objective)
    if len(c):
        share[c] = np.median(objective.y) / np.maximum(
            objective.parts(found.x)[1][:, c].max(axis=0), 1e-300
        )
    for i in range(len(found.x)):
        for edge in (objective.lower[i], objective.upper[i]):
            if not 0 < abs(found.x[i] - edge) < _EDGE * share[i]:
                continue
            theta = found.x.copy()
            theta[i] = edge
            there = replace(objective, held=i).minimise(theta)
            if there.cost <= found.cost * (1 + 1e-9):
                found = there
    return found


def starts(objective: Objective, n: int, rng) -> np.ndarray:
    """n start points (n, P); coefficients are not set."""
    theta = np.ones((n, len(objective.law.params)))
    spread = {t.k: t.spread for t in objective.terms}
    for i, p in enumerate(objective.law.params):
        if p.kind == "coefficient":
            continue
        if p.log_start:
            theta[:, i] = np.exp(rng.uniform(*np.log(p.start), n))
        else:
            theta[:, i] = rng.uniform(*p.start, n) * spread.get(i, 1.0)
    return np.clip(theta, objective.lower, objective.upper)


def _screened(objective: Objective, n: int, rng) -> np.ndarray:
    """The best of many start points of a law whose shape says nothing of where to start, (n, P)."""
    theta = starts(objective, n * _SCREENED, rng)
    costs = np.empty(len(theta))
    for i, point in enumerate(theta):
        theta[i] = with_coefficients(objective, point)
        costs[i] = np.square(np.clip(objective.residuals(theta[i]), -1e3, 1e3)).sum()
    return theta[np.argsort(costs, kind="stable")[:n]]


def with_coefficients(objective: Objective, theta: np.ndarray) -> np.ndarray:
    """theta (P,) with the coefficients that come closest to the target there."""
    theta, c, scale = theta.copy(), _coefficients(objective), 1 / objective.y
    if len(c):
        theta[c] = 0.0
        rest, jacobian = objective.parts(theta)
        basis, right = jacobian[:, c] * scale[:, None], (objective.y - rest) * scale
        theta[c] = _linear(basis, right, objective.lower[c], objective.upper[c])
    return theta


def _wide(objective: Objective, start: np.ndarray) -> OptimizeResult:
    """The optimum of the quadratic objective that a start leads to."""
    if len(_coefficients(objective)) in (0, len(start)):
        return objective.minimise(start, delta=np.inf, tolerance=1e-10)
    return project(objective, start)


def _coefficients(objective: Objective) -> np.ndarray:
    return np.flatnonzero([p.kind == "coefficient" for p in objective.law.params])


def project(objective: Objective, start: np.ndarray) -> OptimizeResult:
    """Variable projection: least squares over exponents and shapes, coefficients following."""
    held = [] if objective.held is None else [objective.held]
    c = np.setdiff1d(_coefficients(objective), held)
    k = np.setdiff1d(np.arange(len(start)), [*c, *held])
    scale = np.ones(len(objective.y)) if objective.raw else 1 / objective.y
    theta = start.copy()
    lower, upper = objective.lower[k], objective.upper[k]
    memory: dict = {}

    def both(part):
        if memory.get("key") is None or not np.array_equal(memory["key"], part):
            theta[k] = np.clip(part, lower, upper)
            theta[c] = 0.0
            rest, jacobian = objective.parts(theta)  # of a coefficient that is held
            basis, right = jacobian[:, c] * scale[:, None], (objective.y - rest) * scale
            if len(c):  # SciPy 1.17's nnls writes out of bounds on a matrix without columns
                theta[c] = _linear(basis, right, objective.lower[c], objective.upper[c])
            jacobian = objective.parts(theta)[1][:, k] * scale[:, None]
            free = (theta[c] > objective.lower[c]) & (theta[c] < objective.upper[c])
            q, _ = np.linalg.qr(basis[:, free])
            memory["key"] = part.copy()
            memory["theta"] = theta.copy()
            memory["at"] = basis @ theta[c] - right, jacobian - q @ (q.T @ jacobian)
        return memory["at"]

    tolerances = {"ftol": 1e-8, "xtol": 1e-6, "gtol": 1e-12, "max_nfev": 100}
    functions = (lambda part: both(part)[0]), start[k], (lambda part: both(part)[1])
    found = least_squares(*functions, method="lm", **tolerances)
    inside = (found.x > lower) & (found.x < upper)
    if not inside.all():  # MINPACK is thrice as fast and knows no bounds
        found = least_squares(*functions, bounds=(lower, upper), **tolerances)
    both(found.x)
    found.x = memory["theta"]
    return found


def _linear(basis, right, lower, upper) -> np.ndarray:
    """Coefficients within their bounds that come closest; columns are scaled, whatever their unit."""
    size = np.maximum(np.linalg.norm(basis, axis=0), 1e-200)
    if (lower == 0).all() and np.isinf(upper).all():
        return nnls(basis / size, right)[0] / size
    return np.clip(
        lsq_linear(basis / size, right, (lower * size, upper * size)).x / size, lower, upper
    )


def _distinct(found: list[OptimizeResult]) -> tuple[list[np.ndarray], list[int]]:
    """Places where starts ended, best first, and how many ended at each."""
    places: list[np.ndarray] = []
    counts: list[int] = []
    for f in sorted(found, key=lambda f: f.cost):
        near = [i for i, p in enumerate(places) if np.abs(p - f.x).max() < _SAME_PLACE]
        if near:
            counts[near[0]] += 1
        else:
            places.append(f.x)
            counts.append(1)
    return places, counts
