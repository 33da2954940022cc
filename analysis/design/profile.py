"""The interval of a quantity of the training law by its profile likelihood.

The quantity is held at values further and further from its estimate, the law is refitted at each, and the
interval ends where the refit is worse by what chance allows. A linearised law misleads here: the optimum of a
law that a grid hardly encloses moves with its parameters by curves. Of 200 simulated grids of the paper's
140M sweep (0.2 % noise) the linearised interval of gamma_mu, or the range of refits about the estimate, held
the truth in 84 %.

Coordinates: log E, the logarithms of both other terms at the mean run, and both exponents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import least_squares

from analysis.design.descent import descend, parts
from analysis.design.optimum import LAW, Size, draws_of, quantities
from analysis.fitting.intervals import by_name
from analysis.fitting.objective import Objective

_SIZES = ("n_params_unrolled", "n_tokens")  # of the terms X, x and Y, y
_LOW = np.array([-10.0, -60.0, 0.02, -60.0, 0.02])
_HIGH = np.array([10.0, 60.0, 5.0, 60.0, 5.0])
_SCALE = np.array([0.1, 0.5, 0.1, 0.5, 0.1])
_STEP = 0.3  # of the interval's half, by the law linearised where the walk is
_STEPS = 40
_ENTERED = 10  # places beyond each end that are looked at
_REFITS = 100
_HELD = 0.02  # of a step: how exactly the quantity is held


class Profile:
    """The training law on some runs, and one quantity of it."""

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        logs: np.ndarray,
        noise: float,
        target: str,
        size: Size,
        budgets: np.ndarray,
    ) -> None:
        """Runs of log losses `logs` (n,) with standard deviation `noise`; the rest as `quantities` takes it."""
        self.columns, self.logs, self.noise = columns, logs, noise
        self.target, self.size, self.budgets = target, size, budgets
        self.centres = np.array([np.log(columns[c]).mean() for c in _SIZES])
        self._last: tuple[bytes, tuple] | None = None

    def interval(
        self,
        values: Mapping[str, float],
        limit: float,
        others: Sequence[tuple[float, Mapping[str, float]]] = (),
    ) -> tuple[float, float]:
        """Both ends about an optimum; -inf or inf where the quantity has none that the runs speak against.

        Args:
            values: the law's natural parameters at the optimum.
            limit: squared Student t at the confidence asked for.
            others: further parameters with the quantity there, such as refits of drawn data. A valley that the
                walk from the optimum does not find is entered from them, the outermost first.
        """
        best = self.inward(values)
        lowest = float(np.square(self(best)[0]).sum())
        ends = []
        for sign in (-1, 1):
            end = self._end(best, sign, limit, lowest)
            beyond = [o for o in others if sign * (o[0] - end) > 0]
            beyond.sort(key=lambda other: -sign * other[0])
            for at, found in beyond[:: max(1, len(beyond) // _ENTERED)]:
                there = self._held_at(at, 0.1, self.inward(found))
                if np.square(self(there)[0]).sum() - lowest < limit:
                    end = self._end(there, sign, limit, lowest)
                    break
            ends.append(end)
        return ends[0], ends[1]

    def inward(self, values: Mapping[str, float]) -> np.ndarray:
        """The coordinates (5,) of natural parameters."""
        e, big_x, x, big_y, y = (max(values[n], 1e-300) for n in LAW.names)  # a floor may be 0
        terms = np.log([big_x, big_y]) - np.array([x, y]) * self.centres
        return np.clip([np.log(e), terms[0], x, terms[1], y], _LOW, _HIGH)

    def __call__(self, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        """At coordinates p: residuals over noise (n,), their slopes (n, 5), the quantity, its slopes (5,)."""
        if self._last is None or self._last[0] != p.tobytes():
            self._last = p.tobytes(), self._at(p)
        return self._last[1]

    def _at(self, p: np.ndarray):
        x, y = p[2], p[4]
        natural = np.exp([p[0], p[1] + x * self.centres[0], 0, p[3] + y * self.centres[1], 0])
        natural[[2, 4]] = x, y
        values = dict(zip(LAW.names, natural, strict=True))
        law, by = LAW.with_slopes(values, self.columns)
        (found,) = quantities((self.target,), values, self.size, self.budgets)
        turn = np.diag([natural[0], natural[1], 1.0, natural[3], 1.0])  # d natural / d p
        turn[1, 2], turn[3, 4] = natural[[1, 3]] * self.centres
        slopes = np.stack([by[n] for n in LAW.names], axis=1) / law[:, None]
        residuals = (np.log(law) - self.logs) / self.noise
        return residuals, slopes @ turn / self.noise, found.value, found.slopes @ turn

    def _end(self, p: np.ndarray, sign: int, limit: float, lowest: float) -> float:
        residuals, slopes, at, pull = self(p)
        inside = float(np.sqrt(max(residuals @ residuals - lowest, 0.0)))
        for _ in range(_STEPS):
            if not pull.any():  # the law has no optimum here, and the quantity feels nothing
                break
            along = np.linalg.solve(slopes.T @ slopes + 1e-10 * np.eye(len(p)), pull)
            to = float(at + sign * _STEP * np.sqrt(limit * (pull @ along)))
            p = self._held_at(to, to - at, p + (to - at) * along / (pull @ along))
            residuals, slopes, reached, pull = self(p)
            if abs(reached - to) > 0.5 * abs(to - at):
                break
            outside = float(np.sqrt(max(residuals @ residuals - lowest, 0.0)))
            if outside >= np.sqrt(limit):
                share = (np.sqrt(limit) - inside) / (outside - inside)
                return at + share * (reached - at)
            at, inside = reached, outside
        return sign * np.inf

    def _held_at(self, to: float, step: float, start: np.ndarray) -> np.ndarray:
        """The best fit with the quantity at `to`, from a start that is at most some scales away."""
        width = _HELD * abs(step)
        return least_squares(
            lambda p: np.append(self(p)[0], (self(p)[2] - to) / width),
            np.clip(start, _LOW, _HIGH),
            jac=lambda p: np.vstack([self(p)[1], self(p)[3] / width]),
            bounds=(_LOW, _HIGH),
            x_scale=_SCALE,
            ftol=1e-5,
            xtol=1e-6,
            gtol=1e-6,
            max_nfev=60,
        ).x


def profiled(
    objective: Objective,
    theta: np.ndarray,
    noise: float,
    target: str,
    size: Size,
    budgets: np.ndarray,
    limit: float,
    seed: Sequence[int],
) -> tuple[float, float]:
    """The profile interval about a fitted theta (P,), entered also from refits of data drawn from the law there."""
    profile = Profile(objective.columns, np.log(objective.y), noise, target, size, budgets)
    draws = noise * np.random.default_rng(seed).standard_normal((_REFITS, len(objective.y)))
    refits, _ = descend(
        objective, np.tile(theta, (_REFITS, 1)), logs=parts(objective, theta[None])[0] + draws
    )
    values = draws_of((target,), by_name(objective, refits), size, budgets)[:, 0]
    others = list(zip(values.tolist(), map(objective.natural, refits), strict=True))
    return profile.interval(objective.natural(theta), limit, others)
