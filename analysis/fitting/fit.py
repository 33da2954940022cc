"""One fitter for every law of `analysis.laws.library`: prepare, search, interval, judge.

fitted = fit(prepare(table, law), law, FitOptions(interval="profile"))
fitted.params, fitted.predict(columns), fitted.result.report()
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import fdtrc

from analysis.errors import InputError
from analysis.fitting import intervals, outliers, profile, search, structure
from analysis.fitting.dataset import Dataset, prepare
from analysis.fitting.intervals import Curvature, Intervals
from analysis.fitting.objective import Objective, build
from analysis.fitting.options import FitOptions, Interval
from analysis.fitting.result import FitResult, Param
from analysis.fitting.search import Search
from analysis.laws.law import Law
from analysis.table import checks, numbers
from analysis.table.load import Table

_ROUNDING = 1e-13  # of log residuals, of data that are the law's own numbers
_CHANCE = 1e-3  # that sizes which follow one law seem not to


@dataclass(frozen=True, eq=False)
class Fit:
    """A law fitted to a dataset: what predictions, judgements and figures go on from."""

    law: Law
    dataset: Dataset
    options: FitOptions
    objective: Objective
    search: Search
    intervals: Intervals
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def theta(self) -> np.ndarray:
        """The optimum in the objective's coordinates, (P,)."""
        return self.search.theta

    @cached_property
    def params(self) -> dict[str, float]:
        """Fitted values by name, as the law prints them."""
        return self.objective.natural(self.theta)

    @cached_property
    def curvature(self) -> Curvature:
        return intervals.curvature(self.objective, self.theta, self.dataset.runs)

    @property
    def log_residuals(self) -> np.ndarray:
        """log(observed / fitted) of each row, (n,)."""
        return np.log(self.dataset.target / self.predict(self.dataset.columns))

    def predict(self, columns, params=None) -> np.ndarray:
        """The target at columns (n,), by the fitted parameters or others."""
        return self.law.predict(self.params if params is None else params, columns)

    def profile(self, name: str) -> profile.Profile:
        """The profile likelihood of one parameter; the one of its interval, where that is one.

        Raises:
            InputError: as many runs as parameters, or fewer.
        """
        self._refuse_few_runs()
        return self.intervals.profiles.get(name) or profile.profile(
            self.objective, self.search, name, self.curvature, self.options.confidence
        )

    def resamples(self, n: int = 500) -> dict[str, np.ndarray]:
        """Parameters of n refits of resampled rows (runs where rows repeat them), by name.

        Raises:
            InputError: as many runs as parameters, or fewer.
        """
        self._refuse_few_runs()
        rng = np.random.default_rng([self.options.seed, 1])
        weights = intervals.counts(self.dataset, n, rng)
        draws, _ = intervals.refits(self.objective, self.theta, weights)
        return intervals.by_name(self.objective, draws)

    def _refuse_few_runs(self) -> None:
        if self.dataset.n_runs <= len(self.theta):
            words = intervals.too_few_runs(self.dataset, len(self.theta))
            raise InputError(f"{self.dataset.table.source}: {words}. Add runs.")

    def student_draws(self, n: int = 4000) -> dict[str, np.ndarray]:
        """Parameters of n draws from the linearised law, Student t, by name."""
        rng = np.random.default_rng(self.options.seed)
        return intervals.student_draws(self.objective, self.theta, self.dataset, n, rng)

    @cached_property
    def result(self) -> FitResult:
        """What is printed and stored."""
        data, table, found = self.dataset, self.dataset.table, self.intervals
        bound = at_bounds(self.objective, self.theta)
        r = self.log_residuals
        spread = ((data.target - data.target.mean()) ** 2).sum()
        misfit = ((data.target - self.predict(data.columns)) ** 2).sum()
        return FitResult(
            law=self.law.name,
            formula=self.law.formula,
            source=table.source,
            params=tuple(
                Param(
                    name=p.name,
                    value=self.params[p.name],
                    ci_low=found.low.get(p.name),
                    ci_high=found.high.get(p.name),
                    unit=p.unit,
                    at_bound=p.name in bound,
                )
                for p in self.law.params
            ),
            confidence=self.options.confidence,
            interval_method=found.method,
            n_obs=len(data),
            dropped=table.dropped,
            objective=self.search.objective,
            objective_name=self.options.objective_name,
            n_starts=self.search.n_starts,
            n_starts_at_best=self.search.n_agree,
            data_sha256=table.sha256,
            flops_rule=table.flops_rule,
            r_squared=float(1 - misfit / spread) if spread > 0 else None,
            rmse_log=float(np.sqrt(np.mean(r**2))),
            largest_residual=float(r[np.abs(r).argmax()]),
            largest_residual_row=int(np.abs(r).argmax()) + 1,
            residuals=tuple(r.tolist()),
            notes=(*table.notes, *self.notes),
            problems=self.problems,
        )


def fit(data: Dataset, law: Law, options: FitOptions | None = None) -> Fit:
    """Fit a law to prepared rows.

    Raises:
        InputError: intervals asked for that these rows cannot give.
    """
    options = options or FitOptions()
    objective = build(law, data, options)
    best = search.search(objective, options.n_starts, np.random.default_rng(options.seed))
    given = data
    data, notes, problems = structure.judged(objective, best.theta, given, law)
    best, found = _intervals(objective, best, data, law, options)
    problems += _sizes_apart(given, law, options, best.objective)
    if options.undertuned == 1.0 and law.target == "val_loss" and not (law.per_run or law.frontier):
        problems += checks.tuning(data.table, law.columns)
    problems += [] if law.per_run else outliers.sentences(objective, best.theta, data)
    for name, sentence in at_bounds(objective, best.theta).items():
        (notes if name in law.floors else problems).append(sentence)
    if len(data) > search.MANY:
        notes.append(f"starts ran on a sample of {search.SAMPLE} rows; the best one then on all")
    return Fit(
        law,
        data,
        options,
        objective,
        best,
        found,
        notes=(*notes, *found.notes),
        problems=tuple(
            dict.fromkeys((*data.problems, *search_problems(best), *problems, *found.problems))
        ),
    )


def fit_table(table: Table, law: Law, options: FitOptions | None = None, **changes) -> Fit:
    """`fit` of a table's rows; `changes` are options by name."""
    return fit(prepare(table, law), law, replace(options or FitOptions(), **changes))


def default_interval(law: Law, data: Dataset) -> Interval:
    """The method whose intervals held the truth closest to 95 % (benchmarks/interval_coverage.csv)."""
    if len(data) > search.MANY:  # of so many rows a profile is a parabola, and costs minutes
        return "linear"
    return "block" if law.cells and data.runs is not None else "profile"


def _intervals(objective, best: Search, data: Dataset, law: Law, options: FitOptions):
    """The optimum, improved where a profile met a better one, and its intervals."""
    kind = options.interval or default_interval(law, data)
    rng = np.random.default_rng([options.seed, 1])
    n, confidence = options.n_resamples, options.confidence
    if data.problems and kind != "none" and any("told apart" in p for p in data.problems):
        return best, Intervals("none: the exponents cannot be told apart")
    if kind == "none":
        return best, Intervals("none asked for")
    if np.abs(objective.residuals(best.theta)).max() < _ROUNDING:
        exact = objective.natural(best.theta)
        words = "none needed: the law passes through every row to the last digits"
        return best, Intervals(words, dict(exact), dict(exact))
    if data.n_runs <= len(best.theta):
        words = intervals.too_few_runs(data, len(best.theta))
        return best, Intervals("none follow", problems=(words,))
    if kind == "linear":
        return best, intervals.linear(objective, best.theta, data, confidence)
    if kind == "block" and data.runs is None:
        raise InputError(
            f"{data.table.source}: no run has several rows here, so there are no blocks to resample; "
            "use --interval bootstrap."
        )
    if kind in ("bootstrap", "block"):
        return best, intervals.bootstrap(objective, best.theta, data, n, confidence, rng)
    for _ in range(3):
        found, better = profile.intervals(objective, best, data, confidence)
        if better is None:
            return best, found
        best = search.onward(objective, best, better)
    raise InputError(
        f"{data.table.source}: profiles of {law.name!r} keep finding better optima; use more "
        "--starts, or --interval bootstrap."
    )


def _sizes_apart(data: Dataset, law: Law, options: FitOptions, together: float) -> list[str]:
    """A sentence where a law in N(mu) fits models of several sizes far worse than each size by itself."""
    if "n_params_unrolled" not in law.columns or "n_params" not in data.table.frame:
        return []
    size = checks.grouped(numbers.floats(data.table.frame.n_params), checks.SAME_SIZE).to_numpy()
    groups = [data.take(size == s) for s in np.unique(size)]
    n_params = len(law.params)
    few = any(g.n_runs <= n_params or not np.ptp(g.columns["n_params_unrolled"]) for g in groups)
    if len(groups) < 2 or few:
        return []
    rng = np.random.default_rng(options.seed)
    apart = sum(search.search(build(law, g, options), 4, rng).objective for g in groups)
    more, left = n_params * (len(groups) - 1), data.n_runs - n_params * len(groups)
    gain = (together - apart) / more / max(apart / left, 1e-300)
    if together < 1.5 * apart or fdtrc(more, left, gain) > _CHANCE:
        return []
    called = data.table.called("n_params")
    sizes = ", ".join(f"{s:.4g}" for s in np.unique(size))
    return [
        f"{len(groups)} model sizes ({called} {sizes}) do not follow one {law.name} law: each by itself fits "
        f'{together / apart:.3g} times as closely; keep one with --where "{called}<={size.min() * 1.05:.6g}"'
    ]


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


def at_bounds(objective: Objective, theta: np.ndarray) -> dict[str, str]:
    """Parameters at the edge of where they may lie, with a sentence each."""
    out = {}
    for i, p in enumerate(objective.law.params):
        low, high = theta[i] <= objective.lower[i], theta[i] >= objective.upper[i]
        if p.kind == "coefficient" and low and p.name in objective.law.floors:
            said = (
                "reaches 0: the data do not need a floor; the other terms and the predictions stand"
            )
        elif p.kind == "coefficient" and low:
            said = "vanishes: the data do not need its term, and the parameters in it mean nothing"
        elif low or high:
            edge = p.bounds[0] if low else p.bounds[1]
            said = f"lies at the bound {edge:g} of its range; the data do not hold it"
        else:
            continue
        out[p.name] = f"{p.name} {said}"
    return out
