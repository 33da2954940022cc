"""Intervals from the curvature at the optimum and from refits of resampled rows or runs.

Profile likelihoods, which scale their rise by what `curvature` finds, are in `analysis.fitting.profile`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.errors import InputError
from analysis.fitting.dataset import Dataset
from analysis.fitting.objective import Objective
from analysis.progress import track

_FEW = 300  # runs; of more the degrees of freedom make no difference
# An eigenvalue of J'J below this share of the largest: the objective is flat along it
_FLAT = 1e-14


@dataclass(frozen=True, slots=True)
class Intervals:
    """Bounds by parameter name, how they were made, and what spoke against them."""

    method: str
    low: dict[str, float | None] = field(default_factory=dict)
    high: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    profiles: dict[str, Any] = field(default_factory=dict)  # that they were read from, by name


@dataclass(frozen=True, slots=True)
class Curvature:
    """The objective near its optimum. q: natural parameters, coefficients by their logarithms.

    A parameter at a bound does not move: its rows and columns are 0.
    """

    covariance: np.ndarray  # of q, (P, P)
    deviance: np.ndarray  # (P,) what turns a rise of F into a chi-square of one parameter's profile
    dof: np.ndarray  # (P,) of each parameter's variance
    weak: str | None  # a parameter along which the objective is flat


def curvature(objective: Objective, theta: np.ndarray, runs: np.ndarray | None) -> Curvature:
    """Of an M-estimator, with the spread of the slopes taken over runs where rows share them.

    Source: Huber (1964), Ann. Math. Stat. 35, 73; for runs Liang and Zeger (1986), Biometrika 73, 13,
    and for the profile's scale Rotnitzky and Jewell (1990), Biometrika 77, 485.
    """
    r, jacobian = objective.residuals_and_jacobian(theta)
    free = (theta > objective.lower) & (theta < objective.upper)
    to_q = objective.log_jacobian(theta)[np.ix_(free, free)]
    rows = jacobian[:, free]
    n, p = len(r), len(theta)
    slope = np.clip(r, -objective.delta, objective.delta)
    if objective.undertuned != 1.0:
        weights = objective.row_weights(r)
        assert weights is not None, "only a symmetric objective may have no weights"
        slope = slope * weights
        rows = rows * np.sqrt(weights)[:, None]
    square = max(float(slope @ slope) / max(n - p, 1), 1e-300)  # E[h'^2]
    bend = _bend(r, objective.delta, n - p)  # E[h'']
    # terms are standardised, and flat where they vanish; elsewhere a scale of 1e13 is not flat for its unit
    unit = np.ones(rows.shape[1]) if objective.terms else np.sqrt((rows**2).sum(axis=0))
    unit[unit == 0] = 1.0
    values, vectors = np.linalg.eigh((rows / unit).T @ (rows / unit))
    weak = None
    if len(values) and values[0] <= _FLAT * values[-1]:
        names = np.array(objective.law.names)[free]
        weak = str(names[np.abs(vectors[:, 0]).argmax()])
        values = np.maximum(values, 1e-10 * values[-1])
    inverse = (vectors / values) @ vectors.T / np.outer(unit, unit)
    independent = inverse * square / bend**2
    covariance, dof = independent, np.full(p, float(n - p))
    if runs is not None:
        count = int(runs.max()) + 1
        scores = np.zeros((count, rows.shape[1]))
        np.add.at(scores, runs, jacobian[:, free] * slope[:, None])
        meat = scores.T @ scores * count / max(count - p, 1)
        covariance = inverse @ meat @ inverse / bend**2
        dof[:] = max(count - p, 1)
        if count <= _FEW:
            # `meat` is scaled up for all parameters alike; where a few runs leave one degree of freedom
            # by that count, each parameter's own are more
            dof[free] = np.maximum(dof[free], _dof_of_runs(rows, runs, inverse, to_q @ inverse))
    in_q = [to_q @ c @ to_q.T for c in (independent, covariance)]
    full, ratio = np.zeros((p, p)), np.ones(p)
    full[np.ix_(free, free)] = in_q[1]
    moved = np.diag(in_q[1]) > 0  # a parameter without effect on any row has no score
    ratio[free] = np.where(moved, np.diag(in_q[0]) / np.where(moved, np.diag(in_q[1]), 1.0), 1.0)
    return Curvature(full, bend / square * ratio, dof, weak)


def _dof_of_runs(rows, runs, inverse, directions) -> np.ndarray:
    """Degrees of freedom of a variance taken over runs, for each parameter, (P,).

    A run of many rows tells of some parameters by itself, so that runs less parameters are not all that is
    left to judge the others by. Source: Bell and McCaffrey (2002), Survey Methodology 28, 169.
    """
    grams = np.array([rows[runs == g].T @ rows[runs == g] for g in range(int(runs.max()) + 1)])
    out = []
    for one in directions:
        reach = grams @ one
        shared = np.diag(reach @ one) - reach @ inverse @ reach.T
        out.append(np.trace(shared) ** 2 / max((shared**2).sum(), 1e-300))
    return np.array(out)


def _bend(r: np.ndarray, delta: float, dof: int) -> float:
    """E[h'']: the share of residuals within delta.

    Few are when delta is below the noise, and the fit itself puts some there; so it is read from the
    density over one standard deviation.
    """
    if np.isinf(delta):
        return 1.0
    width = max(delta, 1.4826 * float(np.median(np.abs(r))) * np.sqrt(len(r) / max(dof, 1)))
    inside = np.mean(np.abs(r) <= width) * min(1.0, delta / width)
    return float(max(inside, 1 / len(r)))


def linear(objective: Objective, theta, data: Dataset, confidence: float) -> Intervals:
    """Student t intervals from the linearised law: right where it is nearly linear in theta."""
    found = curvature(objective, theta, data.runs)
    method = "linearised law, Student t" + by_run(data)
    fault = undetermined(found, data, len(theta))
    if fault:
        return Intervals(method, problems=(fault,))
    half = stdtrit(found.dof, 0.5 + confidence / 2) * np.sqrt(np.diag(found.covariance))
    low: dict[str, float | None] = {}
    high: dict[str, float | None] = {}
    for p, centre, h in zip(objective.law.params, log_natural(objective, theta), half, strict=True):
        ends = np.array([centre - h, centre + h])
        if p.kind == "coefficient":  # on the log scale, so that a bound stays positive
            ends = np.exp(np.clip(ends, -700, 700)) if np.isfinite(centre) else np.zeros(2)
        low[p.name], high[p.name] = float(ends[0]), float(ends[1])
    return Intervals(method, low, high)


def undetermined(found: Curvature, data: Dataset, n_params: int) -> str | None:
    """A sentence where no interval can follow."""
    if data.n_runs <= n_params:
        return too_few_runs(data, n_params)
    if found.weak:
        return f"the data do not determine {found.weak}: the objective is flat along it"
    return None


def too_few_runs(data: Dataset, n_params: int) -> str:
    return (
        f"{data.n_runs} {data.unit} cannot give intervals of {n_params} parameters: at least "
        f"{n_params + 1} are needed"
    )


def log_natural(objective: Objective, theta: np.ndarray) -> np.ndarray:
    """q (P,): natural parameters, coefficients by their logarithms (-inf for one at 0)."""
    values = np.array(list(objective.natural(theta).values()))
    logs = np.array([p.kind == "coefficient" for p in objective.law.params])
    with np.errstate(divide="ignore"):
        return np.where(logs, np.log(np.abs(values)), values)


def student_draws(objective, theta, data: Dataset, n: int, rng) -> dict[str, np.ndarray]:
    """n draws of every parameter from the linearised law, Student t, by name.

    Raises:
        InputError: when the data do not determine the parameters.
    """
    found = curvature(objective, theta, data.runs)
    fault = undetermined(found, data, len(theta))
    if fault:
        raise InputError(f"{data.table.source}: {fault}")
    spread = np.sqrt(np.diag(found.covariance))
    unit = np.where(spread > 0, spread, 1.0)  # a scale's 1e13 would drown an exponent's 1e-3
    shaped = found.covariance / np.outer(unit, unit)
    shift = unit * rng.multivariate_normal(np.zeros(len(theta)), shaped, n, method="eigh")
    dof = found.dof.min()
    q = log_natural(objective, theta) + shift * np.sqrt(dof / rng.chisquare(dof, (n, 1)))
    return {
        p.name: np.exp(q[:, i]) if p.kind == "coefficient" else q[:, i]
        for i, p in enumerate(objective.law.params)
    }


def counts(data: Dataset, n_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn in each resample, (R, n); rows of one run are drawn together."""
    n = data.n_runs
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    return drawn if data.runs is None else drawn[:, data.runs]


def refits(objective: Objective, theta: np.ndarray, weights) -> tuple[np.ndarray, np.ndarray]:
    """theta (R, P) of every resample's optimum, and which of them converged."""
    draws, finished = [], []
    for w in track(weights, "refits of resamples"):
        used = np.flatnonzero(w)
        part = objective.rows(used)
        # all weights 1 (a jackknife) is SciPy's own loss, which is faster
        part = part if (w[used] == 1).all() else part.weighted(w[used])
        found = part.minimise(theta, tolerance=1e-7, max_nfev=100)
        if found.status <= 0:  # a path that stalled starts again from a wide quadratic zone
            again = part.descend(theta, tolerance=1e-7)
            found = again if again.cost <= found.cost else found
        draws.append(found.x)
        finished.append(found.status > 0)
    return np.array(draws), np.array(finished)


def by_name(objective: Objective, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Natural parameters of draws theta (R, P), by name; each (R,)."""
    rows = [objective.natural(theta) for theta in draws]
    return {name: np.array([row[name] for row in rows]) for name in objective.law.names}


def bootstrap(
    objective: Objective, theta, data: Dataset, n_resamples, confidence, rng
) -> Intervals:
    """Refit every resample from the optimum and take percentiles."""
    draws, finished = refits(objective, theta, counts(data, n_resamples, rng))
    # a refit that stopped short is kept: leaving it out would narrow the interval on just the side
    # that the data leave open
    tail = 50 * (1 - confidence) if data.runs is None else expanded(data.n_runs, confidence)
    values = by_name(objective, draws)
    sides: list[dict[str, float | None]] = [
        {k: float(np.percentile(v, at)) for k, v in values.items()} for at in (tail, 100 - tail)
    ]
    low, high = sides
    notes, problems = _open_ends(objective, draws, tail, low, high)
    stopped = int((~finished).sum())
    if stopped > 0.05 * n_resamples:
        problems.append(
            f"{stopped} of {n_resamples} refits stopped before they reached an optimum: the "
            "parameters are hardly told apart, and the intervals may be too narrow"
        )
    name = f"bootstrap ({data.units} resampled), n={n_resamples}"
    return Intervals(name, low, high, tuple(notes), tuple(problems))


def expanded(n: int, confidence: float) -> float:
    """Percent of draws beyond each end where n blocks are resampled: percentiles alone are too narrow.

    Source: Hesterberg (2015), The American Statistician 69, 371, expanded percentiles.
    """
    return float(100 * ndtr(-stdtrit(n - 1, 0.5 + confidence / 2) * np.sqrt(n / (n - 1))))


def _open_ends(objective, draws, tail, low, high) -> tuple[list[str], list[str]]:
    """Where a percentile is only the edge of the box, the interval is open there; said in words."""
    notes, problems = [], []
    for i, p in enumerate(objective.law.params):
        sides = []
        for ends, at, edge, word in (
            (low, tail, objective.lower[i], "below"),
            (high, 100 - tail, objective.upper[i], "above"),
        ):
            if abs(np.percentile(draws[:, i], at) - edge) < 1e-6:
                # a coefficient's range ends at zero, which is a number
                ends[p.name] = 0.0 if p.kind == "coefficient" and word == "below" else None
                sides.append(word)
        if sides == ["below"] and p.name in objective.law.floors:
            notes.append(floor_note(p.name))
        elif sides:
            problems.append(
                f"the data do not bound {p.name} from {' or '.join(sides)}: refits of resamples end "
                "at the limit of its range"
            )
    return notes, problems


def ratio_interval(a: float, b: float, covariance, t2: float) -> tuple[float | None, float | None]:
    """Ends of a / b, by inverting the t test of a - v b = 0; None where b is not told from 0.

    Args:
        covariance: (2, 2) of a and b.
        t2: squared quantile of Student's t, or of the normal distribution.

    Source: Fieller (1954), J. R. Stat. Soc. B 16, 175.
    """
    (var_a, both), (_, var_b) = covariance
    quad, half, const = b * b - t2 * var_b, a * b - t2 * both, a * a - t2 * var_a
    inside = half * half - quad * const
    if quad <= 0 or inside < 0:
        return None, None
    root = float(np.sqrt(inside))
    return float((half - root) / quad), float((half + root) / quad)


def floor_note(name: str) -> str:
    return f"the data do not bound the floor {name} from below: 0 lies in its interval"


def by_run(data: Dataset) -> str:
    return "" if data.runs is None else f", scaled by the spread between {data.units}"
