"""Intervals for fitted parameters: bootstrap over rows or blocks, and the curvature at the optimum.

Profile likelihoods are in `analysis.fitting.profile`; what `parcae fit --interval` names is chosen here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from analysis.errors import InputError
from analysis.fitting import newton, objective

if TYPE_CHECKING:
    from analysis.fitting.fit import Scaled, Search
    from analysis.table.load import Table


@dataclass(frozen=True, slots=True)
class Intervals:
    """Bounds by parameter name, how they were made, and what spoke against them."""

    method: str
    low: dict[str, float | None] = field(default_factory=dict)
    high: dict[str, float | None] = field(default_factory=dict)
    draws: np.ndarray | None = None  # theta of every resample, (R, P)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def intervals(
    scaled: Scaled,
    best: Search,
    table: Table,
    kind: str,
    n_resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Intervals:
    """The intervals of every parameter by the named method.

    Raises:
        InputError: for an unknown method, or blocks that the table cannot form.
    """
    if kind == "none":
        return Intervals("none asked for")
    if kind == "linear":
        return linear(scaled, best.theta, confidence)
    if kind == "bootstrap":
        counts = case_counts(len(scaled.problem.y), n_resamples, rng)
        name = f"bootstrap (rows resampled), n={n_resamples}"
        return bootstrap(scaled, best.theta, counts, confidence, name)
    if kind == "profile":
        from analysis.fitting.profile import profile_intervals

        return profile_intervals(scaled, best.theta, confidence)
    if kind == "block":
        counts, n_blocks = block_counts(table, n_resamples, rng)
        name = f"bootstrap ({n_blocks} blocks of one budget and setting resampled), n={n_resamples}"
        return bootstrap(scaled, best.theta, counts, confidence, name)
    raise InputError(
        f"interval {kind!r} is unknown; it must be bootstrap, block, linear, profile or none."
    )


def case_counts(n_obs: int, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn in each resample, (R, n)."""
    return rng.multinomial(n_obs, np.full(n_obs, 1 / n_obs), size=n_resamples)


def block_counts(table: Table, n_resamples: int, rng: np.random.Generator):
    """The same for whole blocks: rows of one budget and one setting are drawn together."""
    keys = [c for c in ("budget_flops", "mean_recurrence", "trial_id") if c in table.frame]
    if "budget_flops" in keys and "trial_id" in keys:
        keys.remove("trial_id")
    if not keys:
        raise InputError(
            f"{table.source}: blocks need budget_flops, mean_recurrence or trial_id; use "
            "--interval bootstrap."
        )
    label = table.frame.groupby(keys, dropna=False).ngroup().to_numpy()
    n_blocks = int(label.max()) + 1
    drawn = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_resamples)
    return drawn[:, label], n_blocks


def bootstrap(scaled, theta, counts, confidence, name) -> Intervals:
    """Refit every resample from the optimum and take percentiles."""
    draws, finished = refits(scaled, theta, counts)
    # a refit that stopped short is kept: leaving it out would narrow the interval on just the side
    # that the data leave open
    values = scaled.values(draws)
    tail = 50 * (1 - confidence)
    low = {k: float(np.percentile(v, tail)) for k, v in values.items()}
    high = {k: float(np.percentile(v, 100 - tail)) for k, v in values.items()}
    problems = _open_ends(scaled, draws, tail, low, high)
    stopped = int((~finished).sum())
    if stopped > 0.05 * len(counts):
        problems.append(
            f"{stopped} of {len(counts)} refits stopped before they reached an optimum: the "
            "parameters are hardly told apart, and the intervals may be too narrow"
        )
    return Intervals(name, low, high, draws, problems=tuple(problems))


def _open_ends(scaled, draws, tail, low, high) -> list[str]:
    """Where a percentile is only the edge of the box, the interval is open there; said in words."""
    problems = []
    for i, p in enumerate(scaled.law.params):
        sides = []
        for ends, at, edge, word in (
            (low, tail, scaled.problem.lower[i], "below"),
            (high, 100 - tail, scaled.problem.upper[i], "above"),
        ):
            if abs(np.percentile(draws[:, i], at) - edge) < 1e-6:
                # a coefficient's range ends at zero, which is a number
                ends[p.name] = 0.0 if p.kind == "coefficient" and word == "below" else None
                sides.append(word)
        if sides:
            problems.append(
                f"the data do not bound {p.name} from {' or '.join(sides)}: refits of resamples end "
                "at the limit of its range"
            )
    return problems


def refits(scaled: Scaled, theta: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """theta (R, P) of every resample, and which of them converged."""
    draws, finished = [], []
    size = objective.batch_size(scaled.problem)
    for at in range(0, len(counts), size):
        weights = counts[at : at + size].astype(float)
        start = np.repeat(theta[None], len(weights), axis=0)
        found = newton.minimise(scaled.problem, start, weights)
        theta_s, ended = found.theta, found.converged
        if not ended.all():  # a path that stalled starts again from a wide quadratic zone
            again = newton.continued(scaled.problem, start[~ended], weights[~ended])
            theta_s[~ended], ended[~ended] = again.theta, again.converged
        draws.append(theta_s)
        finished.append(ended)
    return np.concatenate(draws), np.concatenate(finished)


def linear(scaled: Scaled, theta: np.ndarray, confidence: float) -> Intervals:
    """Student t intervals from the linearised law: right where it is nearly linear in theta."""
    from scipy.special import stdtrit

    method = "linearised least squares, Student t"
    try:
        spread = covariance(scaled, theta)
    except InputError as error:
        return Intervals(method, problems=(str(error),))
    dof = len(scaled.problem.y) - len(theta)
    natural = scaled.to_natural @ spread @ scaled.to_natural.T
    half = stdtrit(dof, 0.5 + confidence / 2) * np.sqrt(np.diag(natural))
    centre = scaled.to_natural @ theta
    low, high = {}, {}
    for i, p in enumerate(scaled.law.params):
        ends = centre[i] - half[i], centre[i] + half[i]
        if p.kind == "coefficient":  # on the log scale, so that a bound stays positive
            ends = tuple(np.exp(np.clip(ends, -700, 700)))
        low[p.name], high[p.name] = float(ends[0]), float(ends[1])
    return Intervals(method, low, high)


def covariance(scaled: Scaled, theta: np.ndarray) -> np.ndarray:
    """Of theta (P, P), from the linearised law and the mean squared residual.

    Raises:
        InputError: when the objective is flat along a parameter.
    """
    whole = scaled.problem.at(np.inf)
    r = objective.residuals(whole, theta[None])[0]
    rows = jacobian(whole, theta)
    values, vectors = np.linalg.eigh(rows.T @ rows)
    if values[0] <= 1e-14 * values[-1]:
        weak = scaled.law.params[int(np.abs(vectors[:, 0]).argmax())].name
        raise InputError(f"the data do not determine {weak}: the objective is flat along it")
    return (vectors / values) @ vectors.T * (r @ r) / (len(r) - len(theta))


def jacobian(problem: objective.Problem, theta: np.ndarray) -> np.ndarray:
    """dr/dtheta (n, P) by the solver's own analytic pieces, one observation at a time weighted."""
    n = len(problem.y)
    # with residual weights e_i, the gradient of sum w r is row i; r'' does not enter
    parts = [objective.log_term(t, theta[None]) for t in problem.terms]
    u = np.stack([np.broadcast_to(p[0], (1, n)) for p in parts])
    top = u.max(axis=0)
    share = np.exp(u - top)
    share = share / share.sum(axis=0)
    if problem.kind == "raw":
        share = share * np.exp(objective.predict(problem, theta[None]))
    out = np.zeros((n, len(theta)))
    for q, (_, first, _) in zip(share, parts, strict=True):
        for a, da in first:
            out[:, a] += (q if da is None else q * da)[0]
    return out
