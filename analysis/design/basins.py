"""Where the runs so far leave a law: several optima that fit about equally well, each with a weight.

Few runs leave several optima, which disagree where no run is yet. They are found from many starts and
followed as runs are added.

Letters: R rows (candidates and target region), K basins, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from analysis.design.descent import descend, parts
from analysis.fitting import search
from analysis.fitting.objective import Objective

KEPT = 5  # basins that are followed
_FIRST, _LATER = 12, 3  # starts that go down, at first and whenever there are half as many runs again
_SCREENED = 30  # random points looked at for each of them
_GROWTH = 1.5
_GUESS = 0.01  # standard deviation of a log loss about the law before residuals say more,
_GUESS_DOF = 3.0  # and how many residuals the guess counts as
_SAME = 0.2  # optima whose predictions differ by less than this share of the misfit are one


@dataclass(eq=False, slots=True)
class Basins:
    """Optima on the rows seen so far; only the targets of those rows are ever read."""

    whole: Objective  # over every row
    matter: np.ndarray  # (m,) rows where optima must differ to count as two
    rng: np.random.Generator
    temper: float = 1.0
    misfit: float = _GUESS  # standard deviation of a log loss about the law
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
            starts.append(self._promising(part, _LATER if self.grown else _FIRST))
            self.grown = len(rows)
        thetas, costs = descend(part, np.concatenate(starts))
        self.misfit = self._misfit(part, thetas[:1])
        logs, slopes = parts(self.whole, thetas)
        kept: list[int] = []
        for i, cost in enumerate(costs):
            if len(kept) == KEPT or cost > costs[0] + 6 * self.temper * self.misfit**2:
                break
            here = logs[i, self.matter]
            if all(np.abs(here - logs[k, self.matter]).max() > _SAME * self.misfit for k in kept):
                kept.append(i)
        self.thetas, self.logs, self.slopes = thetas[kept], logs[kept], slopes[kept]
        weights = np.exp(-(costs[kept] - costs[0]) / (self.temper * self.misfit**2))
        self.weights = weights / weights.sum()

    def _promising(self, part: Objective, n: int) -> np.ndarray:
        """The best n of many random points, (n, P)."""
        points = search.starts(part, n * _SCREENED, self.rng)
        r = parts(part, points)[0] - np.log(part.y)
        costs = np.square(np.clip(r - r.mean(axis=1, keepdims=True), -1e3, 1e3)).sum(axis=1)
        return points[np.argsort(costs, kind="stable")[:n]]

    def _misfit(self, part: Objective, theta: np.ndarray) -> float:
        """Robust standard deviation of the residuals, drawn to a guess while there are few."""
        r = parts(part, theta)[0][0] - np.log(part.y)
        dof = len(r) - theta.shape[1]
        if dof <= 0:
            return _GUESS
        robust = 1.4826 * np.median(np.abs(r)) * np.sqrt(len(r) / dof)
        return float(
            np.sqrt((dof * robust**2 + _GUESS_DOF * _GUESS**2) / (dof + _GUESS_DOF))
        )

    @property
    def between(self) -> np.ndarray:
        """(R, R) covariance of log predictions that comes from basins that disagree."""
        apart = self.logs - self.weights @ self.logs
        return (apart * self.weights[:, None]).T @ apart
