"""Power laws y = k x^gamma by (weighted) regression of log y on log x, with Student t intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scipy.stats would double the start of a command

from analysis.errors import InputError
from analysis.fitting.result import FitResult, Param
from analysis.table import load
from analysis.table.load import Table

MIN_POINTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerLine:
    """log y = intercept + gamma (log x - centre); predicts with its band."""

    gamma: float
    intercept: float
    centre: float
    residual_std: float  # of log y
    weight_sum: float
    sxx: float  # weighted sum of squares of log x about its centre
    n: int
    confidence: float
    x_low: float
    x_high: float

    @property
    def t(self) -> float:
        return float(stdtrit(self.n - 2, 0.5 + self.confidence / 2))

    @property
    def gamma_interval(self) -> tuple[float, float]:
        half = self.t * self.residual_std / np.sqrt(self.sxx)
        return self.gamma - half, self.gamma + half

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y at x with the interval of the line (not of a new point)."""
        z = np.log(np.asarray(x, dtype=float)) - self.centre
        middle = self.intercept + self.gamma * z
        half = self.t * self.residual_std * np.sqrt(1 / self.weight_sum + z * z / self.sxx)
        return np.exp(middle), np.exp(middle - half), np.exp(middle + half)

    def params(self, names: tuple[str, str], units: tuple[str, str]) -> tuple[Param, Param]:
        """gamma and k = y at x = 1, with intervals; units of (y, gamma)."""
        low, high = self.gamma_interval
        k, k_low, k_high = (float(v[0]) for v in self.predict(np.array([1.0])))
        return (
            Param(name=names[0], value=self.gamma, ci_low=low, ci_high=high, unit=units[1]),
            Param(name=names[1], value=k, ci_low=k_low, ci_high=k_high, unit=units[0]),
        )

    def problems(self, name: str) -> list[str]:
        """What makes the exponent useless as it stands."""
        low, high = self.gamma_interval
        if self.n == MIN_POINTS and high - low > 4 * abs(self.gamma):
            return [
                f"{name} = {self.gamma:.3g} rests on {self.n} points and its interval [{low:.3g}, "
                f"{high:.3g}] says nothing; add budgets"
            ]
        return []


@dataclass(frozen=True, slots=True)
class PowerFit:
    """The result, and what the figure draws."""

    result: FitResult
    line: PowerLine
    table: Table


def fit_line(x, y, confidence: float = 0.95, weights=None) -> PowerLine:
    """Regress log y on log x.

    Args:
        weights: of the squared residuals, 1/variance; equal when absent. Only ratios matter.
    """
    lx, ly = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    w = np.ones_like(lx) if weights is None else np.asarray(weights, dtype=float)
    w = w / w.mean()
    centre = float(np.average(lx, weights=w))
    intercept = float(np.average(ly, weights=w))
    z = lx - centre
    sxx = float((w * z * z).sum())
    gamma = float((w * z * (ly - intercept)).sum() / sxx)
    residual = ly - intercept - gamma * z
    variance = float((w * residual**2).sum() / (len(lx) - 2))
    return PowerLine(
        gamma=gamma,
        intercept=intercept,
        centre=centre,
        residual_std=float(np.sqrt(variance)),
        weight_sum=float(w.sum()),
        sxx=sxx,
        n=len(lx),
        confidence=confidence,
        x_low=float(np.exp(lx.min())),
        x_high=float(np.exp(lx.max())),
    )


def fit_power_line(table: Table, confidence: float = 0.95) -> PowerFit:
    """y = k x^gamma over the columns x, y and, when given, weight (1/variance of log y)."""
    names = ("x", "y") + (("weight",) if "weight" in table.frame else ())
    table = load.need(table, names, "power")
    columns = load.columns_of(table, names)
    distinct = len(np.unique(columns["x"]))
    if distinct < MIN_POINTS:
        raise InputError(
            f"{table.source}: {distinct} different x; an exponent that can be judged needs "
            f"{MIN_POINTS}. Add points."
        )
    line = fit_line(columns["x"], columns["y"], confidence, columns.get("weight"))
    weighted = "weighted " if "weight" in columns else ""
    result = FitResult(
        law="power",
        formula="y = k x^gamma",
        source=table.source,
        params=line.params(("gamma", "k"), ("1", "1")),
        confidence=confidence,
        interval_method="Student t, regression of log y on log x",
        n_obs=line.n,
        dropped=table.dropped,
        objective=line.residual_std**2 * (line.n - 2),
        objective_name=f"{weighted}sum of squared log residuals, closed form",
        data_sha256=table.sha256,
        flops_rule=table.flops_rule,
        notes=table.notes,
        problems=tuple(line.problems("gamma")),
    )
    return PowerFit(result, line, table)
