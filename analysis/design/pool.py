"""Choose runs of a pool, one after the other, so that a law fitted to them predicts a costly region.

No law is exact: what it misses is smooth over the settings, so runs far from the target pull the fit away
from it and runs near it are worth their cost. The misfit is taken as a Gaussian process on top of the law,
and the error to expect on the target is that of the plain fit, which knows nothing of the process:

    q^ = q + (J'J / v + W^-2)^-1 J' (d + e) / v       d the misfit, e the noise, v their variance, W the box

With A = J_T (J'J / v + W^-2)^-1 J' / v the expected squared error on the target rows T is

    tr[K_TT - 2 A K_ST + A (K_SS + noise) A'] + what the box leaves

for each of several basins (`analysis.design.basins`), and what basins disagree about comes on top. The
next run is the one that lowers it most per cost^p. J are the law's exact derivatives.

What the target's losses will be is said by the law, fitted to what was run, and by that process: near runs
that lie above the law say that the target does (`predict`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analysis.design.basins import Basins
from analysis.design.descent import descend
from analysis.fitting import objective
from analysis.fitting.dataset import Dataset
from analysis.fitting.options import FitOptions
from analysis.laws.law import Law

_FITTED = 1e-3  # Huber's threshold of the fit that predicts, as of `parcae fit`,
_STARTS = 96  # and its starts; so many of them are followed for so many rounds
_STAGES = ((24, 20), (10, 60), (1, 400))
BILL = 1e-9  # of the budget: a sum of costs that rounding lifts above it is paid
_STEEPEST = 1e4  # of a log target over a parameter's prior width: a law linear in N turns by N


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Pool:
    """Candidates and target rows of one law; a candidate's loss is read once it is chosen.

    Rows in `done` are there already and cost nothing. A candidate without a loss can be chosen too: its
    setting counts from then on, its loss does not.
    """

    law: Law
    columns: dict[str, np.ndarray]  # (R,) each
    loss: np.ndarray  # (R,)
    cost: np.ndarray  # (R,)
    candidates: np.ndarray  # (n,) rows that can be run
    target: np.ndarray  # (m,) rows whose loss is wanted
    done: np.ndarray = field(default_factory=lambda: np.empty(0, int))


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How runs are chosen; the defaults are what the yardstick was reached with."""

    power: float = 0.4  # of the cost that a gain is divided by
    first: float = 1.0  # cheapest runs for each parameter, before anything is fitted
    temper: float = 2.0  # of the basins' weights
    delta: float = 1e-2  # Huber's threshold
    length: float = 1.0  # of the misfit's process, by the pool's spread of each log column
    stop: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """One run chosen, and why."""

    group: int
    row: int  # of its group
    cost: float
    reason: str


class _Group:
    """One fit of a pool: what it has chosen, and what its next run would bring."""

    def __init__(self, pool: Pool, options: Options, seed: int) -> None:
        self.pool, self.options = pool, options
        order = np.argsort(pool.cost[pool.candidates], kind="stable")
        self.left = pool.candidates[order]
        self.chosen: list[int] = pool.done.tolist()
        self.basins = _basins(pool, options, np.random.default_rng(seed))
        self.gains: tuple[np.ndarray, np.ndarray] | None = None

    def first(self) -> list[int]:
        """The cheapest runs, which come before any fit."""
        n_first = int(np.ceil(self.options.first * len(self.pool.law.params)))
        return self.left[: max(0, n_first - len(self.chosen))].tolist()

    def take(self, row: int) -> None:
        self.chosen.append(row)
        self.left = self.left[self.left != row]
        self.gains = None

    def best(self, budget: float) -> tuple[float, int, str] | None:
        """(gain per cost^p, row, reason) of the best run that the budget pays."""
        open_ = self.pool.cost[self.left] <= budget
        chosen = np.array(self.chosen, int)
        measured = chosen[np.isfinite(self.pool.loss[chosen])]
        if not open_.any() or not len(measured):
            return None
        if self.gains is None:
            self.basins.refit(measured)
            self.gains = gains(self.basins, self.pool, chosen, self.left)
        within, between = (np.where(open_, g, -np.inf) for g in self.gains)
        worth = (within + between) / self.pool.cost[self.left] ** self.options.power
        i = int(np.argmax(worth))
        reason = "basins disagree" if between[i] > within[i] else "spread"
        return float(worth[i]), int(self.left[i]), reason


def choose(
    pools: Sequence[Pool], budget: float, options: Options | None = None
) -> Iterator[Choice]:
    """Runs in the order they should be made, while the budget lasts and a run still helps.

    Args:
        pools: one for each group that is fitted by itself; they share the budget.
    """
    options = options or Options()
    budget *= 1 + BILL
    groups = [_Group(p, options, options.seed + i) for i, p in enumerate(pools)]
    for i, group in enumerate(groups):
        for row in group.first():
            if (cost := float(group.pool.cost[row])) > budget:
                break
            group.take(row)
            budget -= cost
            yield Choice(i, row, cost, "cheapest")
    while True:
        offers = [(o, i) for i, g in enumerate(groups) if (o := g.best(budget)) is not None]
        if not offers:
            return
        (worth, row, reason), i = max(offers, key=lambda offer: offer[0][0])
        if options.stop and worth <= 0:
            return
        groups[i].take(row)
        cost = float(groups[i].pool.cost[row])
        budget -= cost
        yield Choice(i, row, cost, reason)


def predict(
    pool: Pool, rows: np.ndarray, options: Options | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the target (m,) after these rows: by the law alone, and with what it misses near them.

    The second is the law's prediction times exp(K_TS (K_SS + noise)^-1 r), r the log residuals of the fit: the
    mean of the misfit's process given them. Source: Hengl, Heuvelink and Rossiter (2007), Computers and
    Geosciences 33, 1301 (regression kriging).
    """
    options = options or Options()
    basins = _basins(pool, options, np.random.default_rng([options.seed, 1]))
    everything = whole(pool, _FITTED)
    part = everything.rows(rows)
    wide = replace(part, delta=np.inf)
    starts = basins.promising(wide, _STARTS)
    for keep, rounds in _STAGES:
        thetas, costs = descend(wide, starts, rounds=rounds)
        starts = thetas[np.argsort(costs, kind="stable")[:keep]]
    law = everything.parts(part.descend(starts[0], tolerance=1e-10).x)[0]
    basins.refit(rows)
    smooth = basins.smooth * basins.kernel
    measured = smooth[np.ix_(rows, rows)] + basins.own * np.eye(len(rows))
    missed = np.linalg.solve(measured, np.log(part.y / law[rows]))
    return law[pool.target], law[pool.target] * np.exp(smooth[np.ix_(pool.target, rows)] @ missed)


def gains(
    basins: Basins, pool: Pool, chosen: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much less squared error each row leaves on the target: within basins, and between them."""
    width = basins.whole.upper - basins.whole.lower
    width = np.where(np.isfinite(width), width / np.sqrt(12), 3.0)
    n = len(rows)
    sets = np.concatenate([np.broadcast_to(chosen, (n, len(chosen))), rows[:, None]], axis=1)
    within = np.zeros(n)
    for weight, slopes in zip(basins.weights, basins.slopes, strict=True):
        steep = np.abs(slopes).max(axis=0)
        prior = np.minimum(width, _STEEPEST / np.maximum(steep, 1e-300))
        args = slopes * prior, pool.target, basins.smooth * basins.kernel, basins.own
        now = expected_error(chosen[None], *args)
        within += weight * (now - expected_error(sets, *args))
    both = basins.between
    across = both[np.ix_(rows, pool.target)]
    between = np.square(across).sum(axis=1) / (both[rows, rows] + basins.smooth + basins.own)
    return within, between


def expected_error(sets, slopes, target, smooth, own: float) -> np.ndarray:
    """Squared error on the target, summed, of plain fits to sets of rows (n, k); (n,).

    Args:
        slopes: (R, P) of the log target by each parameter over its prior width.
        smooth: (R, R) covariance of what the law misses.
        own: variance of a run's noise.
    """
    variance = own + smooth[0, 0]
    rows, wanted = slopes[sets], slopes[target]  # (n, k, P), (m, P)
    inner = np.linalg.inv(np.einsum("nkp,nkq->npq", rows, rows) / variance + np.eye(rows.shape[2]))
    prior = wanted @ inner  # (n, m, P)
    pull = prior @ rows.transpose(0, 2, 1) / variance  # A
    measured = smooth[sets[:, :, None], sets[:, None, :]] + own * np.eye(sets.shape[1])
    shared = smooth[target][:, sets].transpose(1, 0, 2)
    return (
        np.square(prior).sum(axis=(1, 2))
        + smooth[target, target].sum()
        - 2 * (pull * shared).sum(axis=(1, 2))
        + ((pull @ measured) * pull).sum(axis=(1, 2))
    )


def _basins(pool: Pool, options: Options, rng: np.random.Generator) -> Basins:
    kernel = _kernel(pool, options.length)
    return Basins(whole(pool, options.delta), pool.target, kernel, rng, options.temper)


def _kernel(pool: Pool, length: float) -> np.ndarray:
    """(R, R) correlation of the misfit: Gaussian in the columns' logarithms, by their spread."""
    logs = np.stack([np.log(c) for c in pool.columns.values()], axis=1)
    spread = np.maximum(logs[pool.candidates].std(axis=0), 1e-9) * length
    z = logs / spread / np.sqrt(logs.shape[1])
    return np.exp(-0.5 * np.square(z[:, None] - z[None]).sum(axis=2))


def whole(pool: Pool, delta: float) -> objective.Objective:
    """The objective over every row; targets that are not known yet are never read."""
    known = np.where(np.isfinite(pool.loss), pool.loss, 1.0)
    data = Dataset.of(pool.columns, known)
    return objective.build(pool.law, data, FitOptions(loss="huber", delta=delta))
