"""One fitter for every law of `analysis.laws.library`: start, search, judge, interval, result.

Starts draw the exponents at random and take the coefficients from linear least squares (the law is
linear in them); from each, `analysis.fitting.objective` walks with exact derivatives through falling Huber
thresholds. The objective is the SUM of Huber terms of log-loss residuals, or least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from analysis.errors import InputError
from analysis.fitting import newton
from analysis.fitting import objective as solver
from analysis.fitting.result import FitResult, Param
from analysis.laws.library import Law, LawTerm
from analysis.table import load

if TYPE_CHECKING:
    from analysis.fitting.intervals import Intervals
    from analysis.table.load import Table

Loss = Literal["huber", "log-lsq", "lsq"]
Interval = Literal["bootstrap", "block", "linear", "profile", "none"]
_AGREE = 1e-6  # starts whose objectives differ by less than this share found the same optimum
_WIDE = 1.0  # of Huber's delta: log residuals of a loss never reach it, so all is quadratic
_SAME_PLACE = 1e-3  # in standardised parameters
_VANISHED = 1e-8  # a term below this share of the loss at its anchor counts as absent


@dataclass(frozen=True, slots=True)
class Scaled:
    """A law on data as the solver sees it, and the map back to the paper's parameters.

    theta is natural = to_natural @ theta: log coefficients at x = 0, exponents, shapes.
    """

    law: Law
    problem: solver.Problem
    to_natural: np.ndarray  # (P, P)
    columns: dict[str, np.ndarray]

    def values(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters by name from theta (S, P); each (S,)."""
        natural = theta @ self.to_natural.T
        return {
            p.name: np.exp(np.minimum(natural[:, i], 700.0))
            if p.kind == "coefficient"
            else natural[:, i]
            for i, p in enumerate(self.law.params)
        }


@dataclass(frozen=True, slots=True)
class Search:
    """The best of several starts."""

    theta: np.ndarray  # (P,)
    objective: float
    converged: bool
    n_starts: int
    n_agree: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """A result and what it was made from, for questions that go on from there."""

    result: FitResult
    scaled: Scaled
    search: Search
    intervals: Intervals


def scale(law: Law, columns, y: np.ndarray, loss: Loss = "huber", delta: float = 1e-3) -> Scaled:
    """Standardise every term's variable and set the box."""
    index = {p.name: i for i, p in enumerate(law.params)}
    bounds = {p.name: p.bounds for p in law.params}
    n_params = len(law.params)
    lower, upper = np.full(n_params, -np.inf), np.full(n_params, np.inf)
    to_natural = np.eye(n_params)
    terms = []
    floor = np.log(_VANISHED * np.median(y))
    for term in law.terms:
        c = index[term.coefficient]
        lower[c], upper[c] = floor, np.log(10 * y.max())
        if term.exponent is None:
            terms.append(solver.Term(c=c, x=np.zeros(len(y))))
            continue
        k = index[term.exponent]
        x = _variable(term, columns, law)
        anchor, spread = _anchor(x)
        lower[k], upper[k] = np.array(bounds[term.exponent]) * spread
        to_natural[k, k] = 1 / spread
        to_natural[c, k] = anchor / spread
        if term.shape is None:
            terms.append(solver.Term(c=c, k=k, x=(x - anchor) / spread))
            continue
        s = index[term.shape]
        lower[s], upper[s] = bounds[term.shape]
        terms.append(solver.Term(c=c, k=k, s=s, shape=_shape(term, columns, anchor, spread)))
    problem = solver.Problem(
        terms=tuple(terms),
        y=y if loss == "lsq" else np.log(y),
        lower=lower,
        upper=upper,
        kind="raw" if loss == "lsq" else "log",
        delta=delta if loss == "huber" else np.inf,
    )
    return Scaled(law, problem, to_natural, columns)


def starts(scaled: Scaled, n: int, rng: np.random.Generator) -> np.ndarray:
    """n start points theta (n, P): exponents and shapes at random, coefficients by least squares."""
    law, problem = scaled.law, scaled.problem
    theta = np.zeros((n, len(law.params)))
    for i, p in enumerate(law.params):
        if p.kind != "coefficient":
            theta[:, i] = rng.uniform(*p.start, n) / scaled.to_natural[i, i]
    y = np.exp(problem.y) if problem.kind == "log" else problem.y
    # relative residuals L/y - 1 are the log residuals near the solution, and linear
    basis = (
        np.stack([np.exp(solver.log_term(t, theta)[0]) for t in problem.terms], axis=-1)
        / y[:, None]
    )
    gram = np.matmul(basis.transpose(0, 2, 1), basis)
    ridge = 1e-12 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(gram.shape[-1])
    right = basis.sum(axis=1)[..., None]
    found = np.linalg.solve(gram + ridge, right)[..., 0]
    least = 1e-3 * np.median(y) / np.maximum(basis.max(axis=1) * y.max(), 1e-300)
    for j, term in enumerate(problem.terms):
        theta[:, term.c] = np.log(np.maximum(found[:, j], least[:, j]))
    return np.clip(theta, problem.lower, problem.upper)


def search(scaled: Scaled, n_starts: int, rng: np.random.Generator) -> Search:
    """Minimise from every start; the best, and how many starts found it.

    Every start runs by itself to the optimum of the wide, quadratic objective. Those that meet there
    would walk the same path to the narrow one, which one of them does for all.
    """
    begin = starts(scaled, n_starts, rng)
    problem = scaled.problem
    if np.isfinite(problem.delta):
        wide = _batched(
            lambda theta: newton.minimise(problem.at(_WIDE), theta, tolerance=1e-8), problem, begin
        )
        place = _meeting(wide)
        chosen, member = np.unique(place, return_inverse=True)
        found = _batched(lambda t: newton.continued(problem, t), problem, wide.theta[chosen])
        if not found.converged.all():  # a single path can stall where a neighbour's does not
            found = _batched(lambda t: newton.continued(problem, t), problem, begin)
            member = np.arange(n_starts)
    else:
        found = _batched(lambda t: newton.minimise(problem, t), problem, begin)
        member = np.arange(n_starts)
    objective = found.objective[member]
    best = int(np.argmin(found.objective))
    limit = found.objective[best] * (1 + _AGREE) + 1e-15
    return Search(
        theta=found.theta[best],
        objective=float(found.objective[best]),
        converged=bool(found.converged[best]),
        n_starts=n_starts,
        n_agree=int((objective <= limit).sum()),
    )


def _batched(run, problem: solver.Problem, theta: np.ndarray) -> newton.Solution:
    """A minimiser over batches that fit the cache."""
    size = solver.batch_size(problem)
    parts = [run(theta[i : i + size]) for i in range(0, len(theta), size)]
    return newton.Solution(
        *(
            np.concatenate([getattr(p, n) for p in parts])
            for n in ("theta", "objective", "converged")
        ),
        steps=sum(p.steps for p in parts),
    )


def _meeting(found: newton.Solution) -> np.ndarray:
    """For every member the first one that ended where it did, (S,) int."""
    f, theta = found.objective, found.theta
    place = np.full(len(f), -1)
    for i in np.argsort(f, kind="stable"):
        if place[i] < 0:
            near = np.abs(theta - theta[i]).max(axis=1) < _SAME_PLACE
            place[(place < 0) & near & (f <= f[i] * (1 + _AGREE) + 1e-15)] = i
    return place


def fit_law(table: Table, law: Law, **options) -> FitResult:
    """`fitted`, for who needs the result alone; the same options."""
    return fitted(table, law, **options).result


def fitted(
    table: Table,
    law: Law,
    *,
    loss: Loss = "huber",
    delta: float = 1e-3,
    n_starts: int = 16,
    interval: Interval = "bootstrap",
    n_resamples: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
) -> Fitted:
    """Fit a law to all rows of a table.

    Args:
        delta: Huber's threshold on log-loss residuals.
        interval: "bootstrap" resamples rows, "block" whole groups of one budget and setting,
            "linear" uses the curvature at the optimum, "profile" the likelihood itself.

    Raises:
        InputError: columns missing, unusable values, or fewer rows than the law can bear.
    """
    from analysis.fitting import intervals as uncertainty

    columns, y, table = observations(table, law)
    scaled = scale(law, columns, y, loss, delta)
    rng = np.random.default_rng(seed)
    best = search(scaled, n_starts, rng)
    intervals = uncertainty.intervals(
        scaled, best, table, interval, n_resamples, confidence, np.random.default_rng([seed, 1])
    )
    values = {k: float(v[0]) for k, v in scaled.values(best.theta[None]).items()}
    bound = at_bounds(scaled, best.theta)
    result = FitResult(
        law=law.name,
        formula=law.formula,
        source=table.source,
        params=tuple(
            Param(
                name=p.name,
                value=values[p.name],
                ci_low=intervals.low.get(p.name),
                ci_high=intervals.high.get(p.name),
                unit=p.unit,
                at_bound=p.name in bound,
            )
            for p in law.params
        ),
        confidence=confidence,
        interval_method=intervals.method,
        n_obs=len(y),
        dropped=table.dropped,
        objective=best.objective,
        objective_name=objective_name(loss, delta),
        n_starts=best.n_starts,
        n_starts_at_best=best.n_agree,
        data_sha256=table.sha256,
        flops_rule=table.flops_rule,
        notes=(*table.notes, *intervals.notes),
        problems=(
            *search_problems(best),
            *bound.values(),
            *intervals.problems,
            # without a seed two rows of one setting may be replicas
            *(load.disagreements(table) if "seed" in table.frame else ()),
        ),
    )
    return Fitted(result, scaled, best, intervals)


def default_interval(law: Law) -> Interval:
    """The method whose intervals held the truth closest to 95 % (benchmarks/interval_coverage.csv)."""
    # rows of one run share its seed and its luck, so they are resampled together
    return "block" if "n_loops" in law.columns else "profile"


def observations(table: Table, law: Law):
    """(columns, target, table) of the rows a law is fitted to.

    Raises:
        InputError: columns missing, values unusable, too few rows or no spread along a variable.
    """
    if not law.per_run and "n_loops" not in law.columns:
        table = load.at_training_depth(table)
    if law.frontier:
        table = load.on_the_frontier(table)
    table = load.need(table, (law.target, *law.columns), law.name)
    columns = load.columns_of(table, law.columns)
    y = load.columns_of(table, (law.target,))[law.target]
    if len(y) <= len(law.params):
        raise InputError(
            f"{table.source}: {len(y)} rows for the {len(law.params)} parameters of {law.name!r}; "
            f"at least {len(law.params) + 1} are needed. Add runs."
        )
    for term in law.terms:
        if term.exponent is not None and np.ptp(_variable(term, columns, law)) == 0:
            raise InputError(
                f"{table.source}: the term of {term.coefficient} in {law.formula!r} has the same "
                "variable in every row; its effect cannot be told from a constant. Add runs that differ in it."
            )
    return columns, y, table


def objective_name(loss: Loss, delta: float) -> str:
    return {
        "huber": f"sum of Huber(log loss residual), delta={delta:g}",
        "log-lsq": "half the sum of squared log loss residuals",
        "lsq": "half the sum of squared loss residuals (nats^2)",
    }[loss]


def search_problems(best: Search) -> list[str]:
    """What the search itself says against the optimum."""
    problems = []
    if best.n_starts > 1 and best.n_agree < max(2, best.n_starts // 20):
        problems.append(
            f"only {best.n_agree} of {best.n_starts} starts reached the best objective; the optimum may be local"
        )
    if not best.converged:
        problems.append("the search stopped before its gain was negligible; use more starts")
    return problems


def at_bounds(scaled: Scaled, theta: np.ndarray) -> dict[str, str]:
    """Parameters at the edge of where they may lie, with a sentence each."""
    problem = scaled.problem
    out = {}
    for i, p in enumerate(scaled.law.params):
        low, high = theta[i] <= problem.lower[i] + 1e-9, theta[i] >= problem.upper[i] - 1e-9
        if not low and not high:
            continue
        if p.kind == "coefficient" and low:
            out[p.name] = (
                f"{p.name} vanishes: the data do not need the term '{p.meaning}', and the "
                "parameters in it mean nothing"
            )
        else:
            edge = p.bounds[0] if low else p.bounds[1]
            out[p.name] = (
                f"{p.name} lies at the bound {edge:g} of its range; the data do not hold it"
            )
    return out


def _variable(term: LawTerm, columns, law: Law) -> np.ndarray:
    if term.shaped is None:
        return np.asarray(term.variable(columns), dtype=float)
    middle = np.mean(next(p for p in law.params if p.name == term.shape).start)
    return term.shaped(columns, np.array([[middle]]))[0][0]


def _anchor(x: np.ndarray) -> tuple[float, float]:
    """Where a term's coefficient is measured, and the scale of its variable.

    The mean, for conditioning; but an exponential in T is astronomically small at the mean of T,
    so a variable that spans more than a logarithm ever does is anchored where the term is largest.
    """
    spread = float(x.std()) or 1.0
    wide = x.max() - x.min() > 0.5 * abs(x.max()) and x.min() >= 0
    return (float(x.min()) if wide else float(x.mean())), spread


def _shape(term: LawTerm, columns, anchor: float, spread: float) -> solver.Shape:
    def standardised(s: np.ndarray):
        x, dx, d2x = term.shaped(columns, s[:, None])
        return (x - anchor) / spread, dx / spread, d2x / spread

    return standardised
