"""Where the runs so far leave a law: several optima that fit about equally well, each with a weight.

Few runs leave several optima, which disagree where no run is yet. They are found from many starts and
followed as runs are added. What the law misses, and how much of that is smooth over the settings, is
read from the residuals by restricted maximum likelihood.

Letters: R rows (candidates and target region), K basins, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from analysis.design.descent import descend, parts
from analysis.fitting import search
from analysis.fitting.objective import Objective

KEPT = 6  # basins that are followed
# Starts that go down, at first and whenever there are half as many runs again
_FIRST, _LATER = 12, 3
_SCREENED = 30  # random points looked at for each of them
_GROWTH = 1.5
_BELOW_0 = -60.0  # of a law's logarithm: nothing leads from there
_GUESS = 0.01  # standard deviation of a log loss about the law before residuals say more,
_GUESS_DOF = 3.0  # and how many residuals the guess counts as
_SHARES = np.array([0.0, 0.3, 0.6, 0.8, 0.9, 0.95])  # of that variance that is smooth, and
_BELIEVED = np.array([0.05, 0.05, 0.1, 0.2, 0.3, 0.3])  # what is believed of them before
_SAME = 0.2  # optima whose predictions differ by less than this share of the misfit are one


@dataclass(eq=False, slots=True)
class Basins:
    """Optima on the rows seen so far; only the targets of those rows are ever read."""

    whole: Objective  # over every row
    matter: np.ndarray  # (m,) rows where optima must differ to count as two
    kernel: np.ndarray  # (R, R) correlation of what the law misses
    rng: np.random.Generator
    temper: float = 1.0
    smooth: float = _GUESS**2  # variance of log losses about the law that is smooth, and
    own: float = 1e-5  # each run's own
    thetas: np.ndarray = field(init=False)  # (K, P)
    weights: np.ndarray = field(init=False)  # (K,)
    logs: np.ndarray = field(init=False)  # (K, R) log of the law at every row
    slopes: np.ndarray = field(init=False)  # (K, R, P)
    grown: int = 0

    def __post_init__(self) -> None:
        self.thetas = np.empty((0, len(self.whole.law.params)))

    def refit(self, rows: np.ndarray) -> None:
        """Follow every basin to its optimum on these rows, and look for new ones."""
        part = self.whole.rows(rows)
        starts = [self.thetas]
        if len(rows) >= _GROWTH * self.grown:
            starts.append(self.promising(part, _LATER if self.grown else _FIRST))
            self.grown = len(rows)
        thetas, costs = descend(part, np.concatenate(starts))
        order = np.argsort(costs, kind="stable")
        thetas, costs = thetas[order], costs[order]
        logs, slopes = parts(self.whole, thetas)
        self._learn_misfit(rows, logs[0] - np.log(self.whole.y), slopes[0])
        variance = self.smooth + self.own
        kept: list[int] = []
        for i, cost in enumerate(costs):
            if len(kept) == KEPT or cost > costs[0] + 6 * self.temper * variance:
                break
            here = logs[i, self.matter]
            if all(
                np.abs(here - logs[k, self.matter]).max() > _SAME * np.sqrt(variance) for k in kept
            ):
                kept.append(i)
        self.thetas, self.logs, self.slopes = thetas[kept], logs[kept], slopes[kept]
        weights = np.exp(-(costs[kept] - costs[0]) / (self.temper * variance))
        self.weights = weights / weights.sum()

    def promising(self, part: Objective, n: int) -> np.ndarray:
        """The best n of many random points, (n, P)."""
        points = search.starts(part, n * _SCREENED, self.rng)
        logs = parts(part, points)[0]
        if (logs.min(axis=1) < _BELOW_0).all():  # with coefficients of 1, like a - b*log(N)
            points = np.array([search.with_coefficients(part, p) for p in points[:n]])
            logs = parts(part, points)[0]
        r = logs - np.log(part.y)
        costs = np.square(np.clip(r - r.mean(axis=1, keepdims=True), -1e3, 1e3)).sum(axis=1)
        return points[np.argsort(costs, kind="stable")[:n]]

    def _learn_misfit(self, rows: np.ndarray, residuals: np.ndarray, slopes: np.ndarray) -> None:
        """`smooth` and `own` from the residuals that the parameters cannot take up.

        Source: Patterson and Thompson (1971), Biometrika 58, 545.
        """
        r, jacobian = residuals[rows], slopes[rows]
        dof = len(rows) - jacobian.shape[1]
        if dof <= 0:
            self.smooth, self.own = 0.9 * _GUESS**2, 0.1 * _GUESS**2
            return
        limit = 3 * 1.4826 * np.median(np.abs(r)) + 1e-12
        size = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
        free = np.linalg.qr(jacobian / size, mode="complete")[0][:, -dof:]
        z = free.T @ np.clip(r, -limit, limit)
        smooth = free.T @ self.kernel[np.ix_(rows, rows)] @ free
        variances, scores = [], []
        for share in _SHARES:
            root = np.linalg.cholesky(share * smooth + (1 - share + 1e-9) * np.eye(dof))
            square = np.square(np.linalg.solve(root, z)).sum() + _GUESS_DOF * _GUESS**2
            variances.append(square / (dof + _GUESS_DOF))
            scores.append(-np.log(np.diag(root)).sum() - 0.5 * (dof + _GUESS_DOF) * np.log(square))
        weights = _BELIEVED * np.exp(np.array(scores) - max(scores))
        weights /= weights.sum()
        self.smooth = float(weights @ (_SHARES * variances))
        self.own = float(weights @ ((1 - _SHARES) * variances))

    @property
    def between(self) -> np.ndarray:
        """(R, R) covariance of log predictions that comes from basins that disagree."""
        apart = self.logs - self.weights @ self.logs
        return (apart * self.weights[:, None]).T @ apart
