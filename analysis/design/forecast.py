"""The interval that a sweep will give, before it is run: by Fisher information and by simulation.

Runs of log loss with noise s about the training law have the information J'J / s^2, J the exact
derivatives of log L by the parameters q; a quantity g(q) then has the variance g' (J'J)^-1 g s^2, times
what Huber's function loses on Gaussian noise. The simulation draws the same runs, fits each set with the
same objective as `parcae fit`, and takes the range of what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.design.descent import descend
from analysis.design.optimum import LAW, Quantity, Size, believed, draws_of, enclosed, is_set
from analysis.design.priors import Prior
from analysis.errors import InputError
from analysis.fitting import objective
from analysis.fitting.dataset import Dataset
from analysis.fitting.intervals import by_name
from analysis.fitting.options import FitOptions

SIMULATIONS = 400
_NORMAL = 1.959964  # 97.5 % of the standard normal


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Runs:
    """Settings of a plan's looped runs, one entry per run, replicas included."""

    size: Size
    mean_recurrence: np.ndarray  # (n,)
    budget_flops: np.ndarray  # (n,)
    columns: dict[str, np.ndarray]  # of the training law, (n,) each

    def __len__(self) -> int:
        return len(self.mean_recurrence)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The 95 % interval to expect of one quantity; an end is None where it is open."""

    name: str
    value: float
    low: float | None  # by Fisher information
    high: float | None
    simulated_low: float | None = None  # also without a simulation
    simulated_high: float | None = None


def forecast(
    runs: Runs,
    prior: Prior,
    names: tuple[str, ...],
    *,
    budgets: np.ndarray | None = None,
    simulations: int = SIMULATIONS,
    seed: int = 0,
) -> list[Forecast]:
    """What the training law, fitted to these runs, will say of each quantity.

    Args:
        names: see `analysis.design.optimum.quantities`.
        budgets: over which exponents are taken; None: those of the runs whose optimum is enclosed.
        simulations: 0 leaves them out.

    Raises:
        InputError: too few runs, or runs that do not determine the law.
    """
    if budgets is None:
        budgets = enclosed(prior.values, runs.size, runs.budget_flops)
    wanted = believed(names, prior.values, runs.size, budgets)
    halves = half_widths(runs, prior, wanted)
    ends = simulated(runs, prior, names, budgets, simulations, seed) if simulations else None
    out = []
    for i, (q, half) in enumerate(zip(wanted, halves, strict=True)):
        line = [q.value - half, q.value + half, *(() if ends is None else ends[i])]
        shown = (_natural(q, end) if is_set(q.name, end) else None for end in line)
        out.append(Forecast(q.name, _natural(q, q.value), *shown))
    return out


def _natural(q: Quantity, value: float) -> float:
    return float(np.exp(value) if q.log else value)


def slopes_of(values, columns) -> np.ndarray:
    """d log L / d q (n, P)."""
    value, slopes = LAW.with_slopes(values, columns)
    return np.stack([slopes[n] for n in LAW.names], axis=1) / value[:, None]


def half_widths(runs: Runs, prior: Prior, wanted: list[Quantity]) -> np.ndarray:
    """Half the 95 % interval of each quantity by Fisher information.

    Raises:
        InputError: too few runs, or runs that do not determine the law.
    """
    dof = _dof(runs)
    jacobian = slopes_of(prior.values, runs.columns)
    scale = np.linalg.norm(jacobian, axis=0)
    _, spread, directions = np.linalg.svd(jacobian / scale, full_matrices=False)
    if spread[-1] < 1e-10 * spread[0]:
        raise InputError(
            "these runs do not determine the training law: mean_recurrence or the tokens do not vary enough. "
            "Add budgets or values of mean_recurrence."
        )
    loss = FitOptions().delta / prior.noise
    out = [np.linalg.norm(directions @ (q.slopes / scale) / spread) for q in wanted]
    return stdtrit(dof, 0.975) * prior.noise * np.sqrt(huber_variance(loss)) * np.array(out)


def _dof(runs: Runs) -> int:
    dof = len(runs) - len(LAW.params)
    if dof < 1:
        raise InputError(
            f"{len(runs)} looped runs cannot give intervals of {len(LAW.params)} parameters; at least "
            f"{len(LAW.params) + 1} are needed."
        )
    return dof


def huber_variance(k: float) -> float:
    """Variance of Huber's estimate of a mean, against least squares, on unit Gaussian noise.

    Source: Huber (1964), Ann. Math. Stat. 35, 73: E[psi^2] / E[psi']^2, psi clipped at k.
    """
    inside = 2 * ndtr(k) - 1
    density = np.exp(-0.5 * k * k) / np.sqrt(2 * np.pi)
    square = inside - 2 * k * density + k * k * (1 - inside)
    return float(square / inside**2)


def simulated(
    runs: Runs, prior: Prior, names: tuple[str, ...], budgets: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """(low, high) of each quantity over n simulated sweeps, (Q, 2), widened as Student's t is."""
    rng = np.random.default_rng(seed)
    truth = LAW.predict(prior.values, runs.columns)
    widen = stdtrit(_dof(runs), 0.975) / _NORMAL
    whole = objective.build(LAW, Dataset.of(runs.columns, truth), FitOptions())
    start = theta_of(whole, prior.values)
    logs = np.log(truth) + prior.noise * rng.standard_normal((n, len(truth)))
    found, _ = descend(whole, np.tile(start, (n, 1)), logs=logs, rounds=200)
    draws = draws_of(names, by_name(whole, found), runs.size, budgets)
    middle = np.median(draws, axis=0)
    ends = np.percentile(draws, [2.5, 97.5], axis=0)
    return (middle + (ends - middle) * widen).T


def theta_of(whole: objective.Objective, values) -> np.ndarray:
    """The objective's coordinates of parameters as the law prints them."""
    out = np.array([values[n] for n in whole.law.names], dtype=float)
    for t in whole.terms:
        if t.k is not None:
            out[t.c] *= np.exp(-out[t.k] * t.anchor)
    for t in whole.terms:
        if t.k is not None:
            out[t.k] = values[whole.law.names[t.k]] * t.spread
    return out
