"""The next runs of a sweep: the rest of its FLOPs laid out so that one quantity of the law is known best.

`Planner.next` is a function of what has ended, what is under way and a seed, and of nothing else: a sweep that
was killed asks again and gets the same answer.

1. Bracket: at the cheapest budgets three values of mu within reach of the optimum that the prior expects.
2. Fit the training law from several starts; optima that fit about equally well are basins with weights. Runs that
   no such law fits (`analysis.design.lack_of_fit`) are left out, and nothing beyond them is run any more.
3. Edge: where the lowest loss of a budget lies at an end of what was tried there, and the law says so too,
   the next value beyond that end.
4. Lay out what is left: spend s_i on setting i, minimise the target's variance over the basins,
       sum_k w_k g_k' (M_k + sum_i s_i / c_i j_ki j_ki' / v)^-1 g_k,    sum_i s_i = what is left,
   by multiplicative steps (Titterington 1976; c-optimality with costs), and take the cheapest settings first:
   what they say may change where the dear ones belong. A setting that was run before is a replica.
   i goes over settings whose mu lies within the factor `reach` of their budget's optimum by any basin: further
   out the law says most, and there it does not hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from analysis.design import lack_of_fit
from analysis.design.descent import descend
from analysis.design.forecast import slopes_of, theta_of
from analysis.design.lack_of_fit import LeftOut
from analysis.design.layout import Bearing, information, layout, variance
from analysis.design.optimum import LAW, Size, believed, log_optima, log_optimum, quantities
from analysis.design.priors import Prior
from analysis.design.profile import profiled
from analysis.fitting import objective
from analysis.fitting.dataset import Dataset
from analysis.fitting.options import FitOptions

_BRACKETED = 3  # cheapest budgets that are bracketed
_STARTS, _KEPT = 10, 4
_PRIOR_DOF = 4.0  # residuals that the stated noise counts as
_JUDGED = 3  # runs for each parameter before an interval may end a sweep


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Settings that a sweep may run, sorted by cost."""

    size: Size
    budget_flops: np.ndarray  # (n,)
    mean_recurrence: np.ndarray  # (n,)
    columns: dict[str, np.ndarray]  # of the training law, (n,) each

    @classmethod
    def of(cls, size: Size, budgets, depths) -> Grid:
        """Every budget with every depth."""
        budgets, depths = np.unique(budgets).astype(float), np.unique(depths).astype(float)
        budget, mu = np.repeat(budgets, len(depths)), np.tile(depths, len(budgets))
        columns = size.columns(mu, budget)
        return cls(size=size, budget_flops=budget, mean_recurrence=mu, columns=columns)


@dataclass(frozen=True, slots=True)
class Decision:
    """One run to make: a row of the grid, its replica's number, and why."""

    row: int
    replica: int
    reason: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """The target by the runs so far."""

    value: float
    low: float  # of the 95 % interval, and
    high: float  # infinite where the runs set no end
    n_runs: int  # known, those that are left out of the fit with them
    flops: float

    @property
    def half(self) -> float:
        return 0.5 * (self.high - self.low)


@dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
    """How the next runs are chosen; see the module.

    Raises:
        InputError: a prior that has no optimum where the target needs one.
    """

    grid: Grid
    prior: Prior
    target: str  # gamma_mu, gamma_D, mu@C or loss@C
    total_flops: float
    reach: float  # the factor about a budget's optimum within which it is run
    budgets: np.ndarray  # over which an exponent is taken
    half: float | None = None  # of the interval at which it stops; of a logarithm for mu@C, loss@C
    most: int = 99  # runs of one setting
    seed: int = 0
    _bracket: list[int] = field(init=False)
    _known: dict = field(init=False, default_factory=dict)  # the basins of this call
    _estimates: dict = field(init=False, default_factory=dict)  # the last, by its runs
    _fitted: dict = field(init=False, default_factory=dict)  # the same of the runs that are fitted

    def __post_init__(self) -> None:
        believed((self.target,), self.prior.values, self.grid.size, self.budgets)
        object.__setattr__(self, "_bracket", self._bracketing())

    @property
    def bracket_flops(self) -> float:
        """What the first runs cost, which determine the law."""
        return float(self.grid.budget_flops[self._bracket].sum())

    def next(
        self,
        done: list[tuple[int, float]],
        running: list[int],
        n: int,
        lost: Sequence[int] = (),
    ) -> tuple[list[Decision], str]:
        """Up to n runs to start now, and in words why there are no more, or "".

        Args:
            done: (row, loss) of runs that ended, replicas included.
            running: rows under way.
            lost: rows of runs without a loss (diverged, failed): paid for, and not tried again.
        """
        done, running = sorted(done), sorted(running)
        out: list[Decision] = []
        self._known.clear()
        for _ in range(n):
            pending = [*running, *(d.row for d in out)]
            taken = [*(r for r, _ in done), *pending]
            spent = self.grid.budget_flops[[*taken, *lost]].sum()
            row, reason = self._one(done, pending, self.total_flops - spent, lost)
            if row is None:
                return out, reason
            out.append(Decision(row, Counter(taken)[row], reason))
        return out, ""

    def estimate(self, done: list[tuple[int, float]]) -> Estimate | None:
        """The target with its profile interval, or None while the runs do not determine the law."""
        if len(self._used(done)[0]) <= len(LAW.params) + 1:
            return None
        known = tuple(sorted(done))  # decisions made together rest on the same runs
        if known not in self._estimates:
            self._estimates.clear()
            self._estimates[known] = self._estimated(known)
        return self._estimates[known]

    def _estimated(self, done) -> Estimate | None:
        rows, losses, _ = self._used(done)
        thetas, _, noise, whole = self._basins(rows, losses)
        value, half = self._linear(rows, thetas[0], noise, whole)
        if half == 0:  # no optimum within any budget by this fit: the target feels no parameter
            return None
        low, high = self._profiled(rows, thetas[0], noise, whole)
        flops = self.grid.budget_flops[[r for r, _ in done]].sum()
        return Estimate(value, low, high, len(done), float(flops))

    def _reached(self, done) -> bool:
        """Whether the interval is as narrow as wanted, by runs that can say so."""
        rows, losses, _ = self._used(done)
        if self.half is None or len(rows) < _JUDGED * len(LAW.params):
            return False
        thetas, weights, noise, whole = self._basins(rows, losses)
        half = self._linear(rows, thetas[0], noise, whole)[1]
        if len(weights) > 1 or not 0 < half <= self.half:
            return False
        low, high = self._profiled(rows, thetas[0], noise, whole)
        return high - low <= 2 * self.half

    def _linear(self, rows, theta, noise: float, whole) -> tuple[float, float]:
        values = whole.natural(theta)
        (wanted,) = quantities((self.target,), values, self.grid.size, self.budgets)
        slopes = slopes_of(values, {k: v[rows] for k, v in self.grid.columns.items()})
        scales = np.array([values[n] for n in LAW.names])
        square = variance(information(slopes * scales / noise), wanted.slopes * scales)
        return wanted.value, float(self._t(rows) * np.sqrt(square))

    def _profiled(self, rows, theta, noise: float, whole) -> tuple[float, float]:
        about = (self.target, self.grid.size, self.budgets)
        seed = (self.seed, len(rows), 1)
        return profiled(whole, theta, noise, *about, self._t(rows) ** 2, seed)

    def _t(self, rows) -> float:
        return float(stdtrit(len(rows) - len(LAW.params) + _PRIOR_DOF, 0.975))

    def at_once(self) -> Counter[int]:
        """The whole sweep by the prior alone: how often each row is run."""
        costs, left = self.grid.budget_flops, self.total_flops
        known = self._bearing([self.prior.values])
        out: Counter[int] = Counter()
        for row in self._bracket:
            if costs[row] <= left:
                out[row] += 1
                left -= costs[row]
        while (affordable := costs <= left * (1 + 1e-9)).any():
            affordable[[r for r, k in out.items() if k >= self.most]] = False
            if not affordable.any():
                break
            there = list(out.elements())
            spend, _, _ = self._layout(known, np.ones(1), self.prior.noise, there, left, affordable)
            # the dearest first: what it leaves, cheaper runs fill
            counts = np.floor(spend / costs)
            likely = (
                np.flatnonzero(counts) if counts.any() else np.array([np.argmax(spend / costs)])
            )
            row = int(likely[np.argmax(costs[likely])])
            out[row] += 1
            left -= costs[row]
        return out

    def _one(self, done, pending: list[int], left: float, lost) -> tuple[int | None, str]:
        taken = Counter([*(r for r, _ in done), *pending])
        affordable = self.grid.budget_flops <= left * (1 + 1e-9)
        affordable[[*lost, *(r for r, k in taken.items() if k >= self.most)]] = False
        rows, losses, out = self._used(done)
        beyond = self._beyond(out)
        affordable &= ~beyond
        for row in self._bracket:
            if row not in taken and affordable[row]:
                return row, "bracket"
        if not affordable.any():
            left_some = (self.grid.budget_flops <= left * (1 + 1e-9)).any()
            return None, "no setting is left" if left_some else "the FLOPs are spent"
        if len(rows) <= len(LAW.params) + 1:
            return None, "waiting for the bracket" if pending else "too few runs have ended"
        if "basins" not in self._known:
            self._known["basins"] = self._basins(rows, losses)
            self._known["reached"] = self._reached(done)
            thetas, _, _, whole = self._known["basins"]
            self._known["bearing"] = self._bearing([whole.natural(t) for t in thetas])
        if self._known["reached"]:
            return None, "the interval is reached"
        thetas, weights, noise, whole = self._known["basins"]
        further = self._edge(whole.natural(thetas[0]), rows, losses, pending, affordable)
        if further is not None:
            return further, "edge"
        there = [*rows, *(r for r in pending if not beyond[r])]
        bearing = self._known["bearing"]
        spend, within, between = self._layout(bearing, weights, noise, there, left, affordable)
        counts = spend / self.grid.budget_flops
        if not counts.max() > 0:  # nothing that can be run bears on the target by this fit
            repeats = np.array([taken[r] for r in range(len(counts))])
            order = np.lexsort((self.grid.budget_flops, repeats, ~affordable))
            return int(order[0]), "the law is not determined"
        likely = np.flatnonzero(counts >= min(0.5, 0.999 * counts.max()))
        row = int(likely[np.lexsort((-counts[likely], self.grid.budget_flops[likely]))[0]])
        if row in taken:
            return row, "replica"
        return row, "basins disagree" if between > within else "spread"

    def _bracketing(self) -> list[int]:
        """The ends of what is within reach at each budget, and between them what is nearest the optimum."""
        away = self._away([self.prior.values])
        out: list[int] = []
        for budget in np.unique(self.grid.budget_flops)[:_BRACKETED]:
            here = np.flatnonzero(self.grid.budget_flops == budget)
            nearest = here[np.argsort(away[here], kind="stable")]
            inside = nearest[: max(3, (away[here] <= np.log(self.reach)).sum())]
            between = [row for row in inside if inside.min() < row < inside.max()]
            out += [int(row) for row in sorted({inside.min(), *between[:1], inside.max()})]
        return out

    def _away(self, basins) -> np.ndarray:
        """|log mu / mu*| of every setting (n,), mu* the best of its budget by the nearest basin."""
        budgets, which = np.unique(self.grid.budget_flops, return_inverse=True)
        values = {name: np.array([basin[name] for basin in basins]) for name in LAW.names}
        best = log_optima(values, self.grid.size, budgets)[:, which]
        return np.abs(np.log(self.grid.mean_recurrence) - best).min(axis=0)

    def left_out(self, done: list[tuple[int, float]]) -> tuple[LeftOut, ...]:
        """Runs that are no part of the fit."""
        return self._used(done)[2]

    def _used(self, done) -> tuple[np.ndarray, np.ndarray, tuple[LeftOut, ...]]:
        """Rows and losses that the law is fitted to, and what is left out."""
        known = tuple(sorted(done))
        if known not in self._fitted:
            self._fitted.clear()
            self._fitted[known] = self._cut(*_split(known))
        return self._fitted[known]

    def _cut(self, rows: np.ndarray, losses: np.ndarray):
        loops, tokens = self.grid.mean_recurrence, self.grid.columns["n_tokens"]
        flops = self.grid.budget_flops
        n_params = len(LAW.params)
        masks = lack_of_fit.sets(loops[rows], tokens[rows], flops[rows], losses, n_params)
        if not masks:
            return rows, losses, ()
        thetas, _, whole = self._fit(rows, losses)

        def squares(kept: np.ndarray) -> float:
            return 2 * float(self._fit(rows[kept], losses[kept])[1][0])

        residuals, slopes = whole.residuals_and_jacobian(thetas[0])
        found = lack_of_fit.left_out(
            masks, residuals, slopes, squares, self.prior.noise, _PRIOR_DOF
        )
        if found is None:
            return rows, losses, ()
        out, p = found
        thetas, _, whole = self._fit(rows[~out], losses[~out])
        values = whole.natural(thetas[0])
        expected = LAW.predict(values, {k: v[rows[out]] for k, v in self.grid.columns.items()})
        said = zip(rows[out], losses[out], expected, strict=True)
        return (
            rows[~out],
            losses[~out],
            tuple(LeftOut(int(r), float(v), float(e), p) for r, v, e in said),
        )

    def _beyond(self, out: tuple[LeftOut, ...]) -> np.ndarray:
        """Settings (n,) with at least the loops of a run that is left out, and no more tokens."""
        at = [o.row for o in out]
        loops, tokens = self.grid.mean_recurrence, self.grid.columns["n_tokens"]
        return lack_of_fit.beyond(loops, tokens, loops[at], tokens[at])

    def _fit(self, rows: np.ndarray, losses: np.ndarray):
        """Optima (S, P) of every start, best first, their objectives (S,), and whose coordinates they have."""
        columns = {k: v[rows] for k, v in self.grid.columns.items()}
        whole = objective.build(LAW, Dataset.of(columns, losses), FitOptions(loss="log-lsq"))
        rng = np.random.default_rng([self.seed, len(rows)])
        first = theta_of(whole, self.prior.values)
        # about the prior, a factor in every parameter
        starts = first * np.exp(0.4 * rng.standard_normal((_STARTS, len(first))))
        thetas, costs = descend(whole, np.concatenate([first[None], starts]), rounds=200)
        order = np.argsort(costs, kind="stable")
        return thetas[order], costs[order], whole

    def _basins(self, rows: np.ndarray, losses: np.ndarray):
        """Optima (K, P), weights (K,), noise, and the objective whose coordinates they have."""
        thetas, costs, whole = self._fit(rows, losses)
        dof = max(len(rows) - thetas.shape[1], 0)
        square = (2 * costs[0] + _PRIOR_DOF * self.prior.noise**2) / (dof + _PRIOR_DOF)
        kept = [0]
        for i in range(1, len(thetas)):
            near = np.abs(thetas[kept] - thetas[i]).max(axis=1).min() < 0.02
            if len(kept) < _KEPT and costs[i] < costs[0] + 4 * square and not near:
                kept.append(i)
        weights = np.exp(-(costs[kept] - costs[0]) / square)
        return thetas[kept], weights / weights.sum(), float(np.sqrt(square)), whole

    def _edge(self, values, rows, losses, pending, affordable) -> int | None:
        """A setting beyond the end of a budget's values, where measurement and law put the optimum."""
        for budget in np.unique(self.grid.budget_flops[rows])[:_BRACKETED]:
            here = self.grid.budget_flops[rows] == budget
            mine = rows[here]
            if len(set(mine)) < 3 or (self.grid.budget_flops[pending] == budget).any():
                continue
            depths = self.grid.mean_recurrence[mine]
            lowest = depths[losses[here].argmin()]
            best = np.exp(log_optimum(values, self.grid.size, np.array([budget]))[0][0])
            options = np.flatnonzero((self.grid.budget_flops == budget) & affordable)
            ladder = self.grid.mean_recurrence[options]
            if lowest == depths.max() < best and (beyond := options[ladder > lowest]).size:
                return int(beyond[0])
            if lowest == depths.min() > best and (below := options[ladder < lowest]).size:
                return int(below[-1])
        return None

    def _bearing(self, basins) -> Bearing:
        about = (self.grid.size, self.budgets)
        wanted = [quantities((self.target,), basin, *about)[0] for basin in basins]
        # each parameter measured by itself, so that all are of order one
        scales = np.array([[basin[n] for n in LAW.names] for basin in basins])
        slopes = np.array([slopes_of(basin, self.grid.columns) for basin in basins])
        return Bearing(
            jacobians=slopes * scales[:, None],
            targets=np.array([q.slopes for q in wanted]) * scales,
            values=np.array([q.value for q in wanted]),
            away=self._away(basins),
        )

    def _layout(self, bearing: Bearing, weights, noise: float, there: list[int], left, affordable):
        """FLOPs for every setting (n,), and the target's variance within and between basins."""
        away = np.where(affordable, bearing.away, np.inf)
        near = away <= max(np.log(self.reach), away.min())  # if none is within reach, the nearest
        jacobians, targets = bearing.jacobians / noise, bearing.targets
        informations = np.array([information(j) for j in jacobians[:, there]])
        within = weights @ [variance(m, g) for m, g in zip(informations, targets, strict=True)]
        between = weights @ (bearing.values - weights @ bearing.values) ** 2
        left = min(left, self.most * self.grid.budget_flops.sum())  # more cannot be spent
        costs = np.where(near, self.grid.budget_flops, np.inf)
        spend = layout(jacobians, targets, informations, weights, costs, left)
        return spend, within, between


def _split(done) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r for r, _ in done], dtype=int), np.array([v for _, v in done], dtype=float)
