"""Profile likelihood: how the best objective rises as one parameter is held away from its optimum.

Where it rises slowly the data do not hold the parameter, and the interval is open on that side: the
honest answer that a curvature at the optimum cannot give. The rise is scaled so that it is
chi-square distributed to first order (`intervals.curvature`); for least squares that is the usual
F test. An interval's end is the outermost crossing of the limit, found by `root_scalar` between the
last held value that lies inside and the first beyond.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.optimize import OptimizeResult, root_scalar
from scipy.special import stdtrit

from analysis.fitting.dataset import Dataset
from analysis.fitting.intervals import (
    Curvature,
    Intervals,
    by_run,
    curvature,
    floor_note,
)
from analysis.fitting.objective import Objective
from analysis.fitting.search import Search, project
from analysis.progress import track

_FIRST, _GROWTH, _STEPS = 0.7, 1.6, 24  # of the scan outward, in half-widths of a parabola
_BEYOND = 3.0  # times the limit: where the scan ends
_EXACT = 1e-3  # of a refit's deviance, which is compared with a limit of about 4
_JUMP = 0.05  # of the limit: a root this far off the limit lies at a jump
_FAR = 60.0  # of a coefficient's logarithm: nobody's coefficient lies beyond


@dataclass(frozen=True, slots=True)
class Profile:
    """One parameter's profile; `deviance` is compared with `limit`."""

    name: str
    values: np.ndarray  # natural values held, ascending
    deviance: np.ndarray
    limit: float  # squared Student t at the confidence asked for
    low: float | None  # outermost crossing of the limit; None: there is none
    high: float | None
    jumps: tuple[float, ...] = ()  # ends at which refits from both sides disagree
    better: np.ndarray | None = None  # theta of a refit below the optimum handed in


def intervals(objective: Objective, best: Search, data: Dataset, confidence: float):
    """Intervals of every parameter, open sides said in words; and a better optimum if one is met."""
    theta = best.theta
    found = curvature(objective, theta, data.runs)
    method = "profile likelihood, Student t" + by_run(data)
    low, high, notes, problems, profiles = {}, {}, [], [], {}
    for p in track(objective.law.params, "profiles"):
        one = profiles[p.name] = profile(objective, best, p.name, found, confidence)
        if one.better is not None:
            return None, one.better
        low[p.name], high[p.name] = one.low, one.high
        open_below = one.low is None or (p.kind == "coefficient" and one.low == 0)
        if open_below and p.kind == "coefficient" and p.bounds[0] == 0:
            low[p.name] = 0.0
        if open_below and p.name in objective.law.floors:
            notes.append(floor_note(p.name))
            open_below = False
        sides = ["below"] * open_below + ["above"] * (one.high is None)
        if sides:
            reached = one.values[0 if sides[-1] == "below" else -1]
            problems.append(
                f"the data do not bound {p.name} from {' or '.join(sides)}: the objective stays "
                f"flat to {reached:.3g}"
            )
        problems += [
            f"the profile of {p.name} jumps at {v:.4g}: refits from its two sides end apart, and the "
            "interval's end is uncertain"
            for v in one.jumps
        ]
    return Intervals(method, low, high, tuple(notes), tuple(problems), profiles), None


@dataclass(slots=True)
class _Path:
    """Refits at held values of one parameter, in order; u is the value, or its logarithm."""

    refit: Callable[..., OptimizeResult]  # of u, a neighbour's theta and its u
    best: float
    scale: float  # 2 x what turns a rise of F into a deviance
    far: float  # a deviance that ends the scan
    others: list[tuple[float, np.ndarray]]  # further optima: u, theta
    u: list[float] = field(default_factory=list)
    theta: list[np.ndarray] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    sound: list[bool] = field(default_factory=list)

    def add(self, u: float, sign: int, both: bool = False) -> float:
        """Refit at u from its inner neighbour, or from both; the deviance there.

        Both are asked too where the refit from one failed or does not lie between the two.
        """
        i = bisect.bisect_left(self.u, u)
        if i < len(self.u) and self.u[i] == u:
            return self.deviance(i)
        inner, outer = (i - 1, i) if sign > 0 else (i, i - 1)
        found = [self.refit(u, self.theta[inner], self.u[inner])]
        if 0 <= outer < len(self.u):
            between = self.cost[inner] <= found[0].cost <= self.cost[outer]
            if both or found[0].status <= 0 or not between:
                found.append(self.refit(u, self.theta[outer], self.u[outer]))
        elif self.scale * (found[0].cost - self.best) > self.far:  # or only a bad way there
            found.append(self.refit(u, self.theta[inner], self.u[inner], project_first=True))
        found += [self.refit(u, theta, u_other) for u_other, theta in self.others]
        best = min(found, key=lambda f: f.cost)
        self.u.insert(i, u)
        self.theta.insert(i, best.x)
        self.cost.insert(i, best.cost)
        self.sound.insert(i, best.status > 0)
        return self.deviance(i)

    def deviance(self, i: int) -> float:
        return self.scale * max(self.cost[i] - self.best, 0.0)

    def forget(self, low: float, high: float) -> None:
        """Drop the held values strictly between two."""
        for i in reversed(range(len(self.u))):
            if low < self.u[i] < high:
                for column in (self.u, self.theta, self.cost, self.sound):
                    del column[i]

    def mend(self, start: int, sign: int) -> None:
        """Refit from the outer neighbour where a refit failed or lies above one farther out."""
        outward = range(len(self.u) - 1, start, -1) if sign > 0 else range(start)
        for i in list(outward)[1:]:
            outer = i + sign
            if self.sound[i] and self.cost[i] <= self.cost[outer] * (1 + 1e-9):
                continue
            again = self.refit(self.u[i], self.theta[outer], self.u[outer])
            if again.cost < self.cost[i]:
                self.theta[i], self.cost[i], self.sound[i] = again.x, again.cost, again.status > 0


def profile(
    objective: Objective, best: Search, name: str, shape: Curvature, confidence: float = 0.95
) -> Profile:
    """Hold one parameter at values around its optimum and minimise over the others.

    Args:
        best: the optimum, and others that refits may start from.
        shape: the `curvature` at the optimum.
    """
    theta = best.theta
    index = objective.law.names.index(name)
    limit = float(stdtrit(shape.dof[index], 0.5 + confidence / 2)) ** 2
    held = objective.holding(index)
    at = objective.natural(theta)[name]
    param = objective.law.params[index]
    spans_decades = name not in objective.law.floors and param.bounds[0] >= 0
    is_log = param.kind == "coefficient" and spans_decades and at > 0
    unit = 1.0 if param.kind == "coefficient" else objective.scale_of(index)

    def pinned(theta):
        value = objective.natural(theta)[name]
        return (np.log(value) if is_log else value), _with(theta, index, value * unit)

    others = [pinned(t) for t in best.others if not is_log or objective.natural(t)[name] > 0]
    start, first = pinned(theta)
    best_value, scale = objective.value(theta), 2 * float(shape.deviance[index])
    ftol = float(np.clip(_EXACT / max(scale * best_value, 1e-300), 1e-12, 1e-5))
    # SciPy's gtol is no ratio: of residuals that are rounding, gradients begin below a fixed one
    gtol = float(np.clip(1e-8 * np.sqrt(2 * best_value), 2.3e-16, 1e-8))
    path = _Path(
        partial(_refit, held, index, is_log, unit, (ftol, gtol)),
        best_value,
        scale,
        _BEYOND * limit,
        others,
    )
    path.u, path.theta, path.cost, path.sound = [start], [first], [path.best], [True]
    spread = float(np.sqrt(shape.covariance[index, index]))
    if param.kind == "coefficient" and not is_log:
        spread *= at  # covariance is of the logarithm
    spread = spread if spread > 0 else max(abs(start), 1.0) * 0.1
    bounds = [objective.lower[index] / unit, objective.upper[index] / unit]
    if is_log:
        bounds = [start - _FAR, start + _FAR]
    ends, jumps = [], []
    for sign, edge in ((-1, bounds[0]), (1, bounds[1])):
        end, jump = _end(path, start, sign, edge, spread, limit)
        ends.append(end)
        jumps += jump
    natural = np.exp if is_log else np.asarray
    lowest = int(np.argmin(path.cost))
    better = None
    if path.cost[lowest] < path.best * (1 - 1e-6) - 1e-15:
        better = _back(objective, held, path.theta[lowest], index)
    low, high = (None if e is None else float(natural(e)) for e in ends)
    return Profile(
        name,
        natural(np.array(path.u)),
        np.array([path.deviance(i) for i in range(len(path.u))]),
        limit,
        low,
        high,
        tuple(float(natural(j)) for j in jumps),
        better,
    )


def _end(path: _Path, start, sign, edge, spread, limit) -> tuple[float | None, list[float]]:
    """The outermost crossing on one side, None without one; and the places of jumps."""
    step = spread * np.sqrt(limit)
    # a curvature that says too little of a steep side must not step over a crossing
    for _ in range(8):
        if path.add(_inside(start + sign * _FIRST * step, edge, sign), sign) <= _BEYOND * limit:
            break
        step /= 4
    reach = _FIRST
    for _ in range(_STEPS):
        u = _inside(start + sign * reach * step, edge, sign)
        if path.add(u, sign) > _BEYOND * limit or u == edge:
            break
        reach *= _GROWTH
    path.mend(bisect.bisect_left(path.u, start), sign)
    side = [i for i in range(len(path.u)) if (path.u[i] - start) * sign >= 0]
    side = side if sign > 0 else side[::-1]  # outward
    within = [n for n, i in enumerate(side) if path.deviance(i) <= limit]
    if within[-1] == len(side) - 1:
        return None, []
    inner, outer = path.u[side[within[-1]]], path.u[side[within[-1] + 1]]

    width = abs(outer - start)
    for both in (False, True):  # a root at a jump is looked for again, from both sides
        # in widths, because an interval may be a millionth of the value that it is of
        share = root_scalar(
            lambda w: np.sqrt(path.add(start + w * width, sign, both)) - np.sqrt(limit),  # noqa: B023
            bracket=sorted(((inner - start) / width, (outer - start) / width)),
            xtol=1e-4,
            rtol=1e-4,
        ).root
        root = start + share * width
        jump = abs(path.add(root, sign) - limit) > _JUMP * limit
        if not jump or both:
            break
        path.forget(*sorted((inner, outer)))
    # a held value whose refit lies inside belongs to the interval, whatever the root says
    inside = [u for i, u in enumerate(path.u) if path.deviance(i) <= limit]
    outermost = max(inside) if sign > 0 else min(inside)
    end = sign * max(sign * root, sign * outermost)
    return float(end), [float(root)] if jump else []


def _inside(u: float, edge: float, sign: int) -> float:
    return min(u, edge) if sign > 0 else max(u, edge)


def _refit(
    held: Objective,
    index: int,
    is_log: bool,
    unit: float,
    exact: tuple[float, float],  # ftol and gtol
    u,
    start,
    u_start,
    project_first=False,
) -> OptimizeResult:
    """Minimise with the parameter at u, from a neighbour's optimum followed there to first order."""
    ftol, gtol = exact
    begin = _with(start, index, (np.exp(u) if is_log else u) * unit)
    free = np.arange(len(start)) != index
    _, jacobian = held.residuals_and_jacobian(start)
    change = (u - u_start) * (start[index] if is_log else unit)
    follow = np.linalg.lstsq(jacobian[:, free], -change * jacobian[:, index])[0]
    moved = begin.copy()
    moved[free] += follow
    in_box = bool(((moved >= held.lower) & (moved <= held.upper))[free].all())
    if _linear(held) and (project_first or not in_box):
        begin = project(held, begin).x
    elif in_box:
        begin = moved
    found = held.minimise(begin, tolerance=1e-8, ftol=ftol, gtol=gtol, max_nfev=40)
    if found.status <= 0 and _linear(held):  # a curved valley: let the coefficients follow first
        again = held.minimise(project(held, begin).x, tolerance=1e-8, ftol=ftol, gtol=gtol)
        found = again if again.cost <= found.cost else found
    return found


def _linear(held: Objective) -> bool:
    """Whether coefficients can follow by themselves: some are free, and so is something else."""
    kinds = [p.kind == "coefficient" for i, p in enumerate(held.law.params) if i != held.held]
    return any(kinds) and not all(kinds)


def _with(theta: np.ndarray, index: int, value: float) -> np.ndarray:
    out = theta.copy()
    out[index] = value
    return out


def _back(objective: Objective, held: Objective, theta: np.ndarray, index: int) -> np.ndarray:
    """theta of the held objective in the coordinates of the free one."""
    for t in objective.terms:
        if t.c == index and t.k is not None:
            value = theta[index] * np.exp(-theta[t.k] / t.spread * t.anchor)
            return _with(theta, index, value)
    return theta
