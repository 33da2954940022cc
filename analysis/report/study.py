"""Everything that follows from one source: each law that its columns allow, and its figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import known, test_time, validate
from analysis.errors import InputError
from analysis.figures import known as known_figures
from analysis.figures import parametric as parametric_figures
from analysis.figures import sweeps
from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.result import FitResult
from analysis.isoflop import bias, parabolas
from analysis.laws import library
from analysis.table import load as table_load

if TYPE_CHECKING:
    from collections.abc import Callable

    from analysis.figures.drawing import Drawing
    from analysis.table.load import Table


@dataclass(frozen=True, slots=True)
class Study:
    """One source, analysed. `refusals` says in words which law could not be tried, and why."""

    table: Table
    recurrence: parabolas.Recurrence | None
    test_time: test_time.TestTime | None
    parametric: dict[
        str, Fit
    ]  # training, unified; of a table without loops chinchilla, or L(D), L(N)
    refusals: dict[str, str]  # law -> sentence

    def judgements(self) -> dict[str, list[dict]]:
        """Tables on whether the laws hold where they were not fitted, by title; as `parcae judge`."""
        out: dict[str, list[dict]] = {}
        for result in self.results:
            if result.law == "unified":  # a minute of refits: `parcae judge --law unified`
                continue
            try:
                tables = validate.judge(self.table, result.law)
            except InputError as error:
                out[f"{result.law}: {error}"] = []
                continue
            # the recurrence law's own tables hold it already
            out |= {f"{result.law}: {t}": r for t, r in tables.items() if "parabola" not in t}
        return out

    @property
    def results(self) -> tuple[FitResult, ...]:
        closed = tuple(f.result for f in (self.recurrence, self.test_time) if f is not None)
        return (*closed, *(f.result for f in self.parametric.values()))

    def summaries(self) -> list[str]:
        """One line per law: exponents with intervals, or why there are none."""
        return [
            *self.headlines(),
            *(f.result.summary() for f in self.parametric.values()),
            *(f"{law} [{self.table.source}]: {why}" for law, why in self.refusals.items()),
        ]

    def headlines(self) -> list[str]:
        """The recurrence law and the test-time curves, a line each, where they could be fitted."""
        lines = [] if self.recurrence is None else [self.recurrence.result.summary()]
        return lines if self.test_time is None else [*lines, self.test_time.summary()]

    def drawings(self) -> list[Drawing]:
        """The figures that the fits allow; of the others `refusals` says why not."""
        draws: dict[str, Callable[[], Drawing]] = {}
        if known.has_floor(self.table):
            draws["loss_by_gap"] = lambda: known_figures.loss_by_gap(self.table)
            draws["equal_flops"] = lambda: known_figures.equal_flops(self.table)
        if self.recurrence is not None:
            draws["isoflop"] = partial(sweeps.isoflop, self.recurrence)
            draws["power_laws"] = partial(sweeps.power_laws, self.recurrence)
        if self.test_time is not None:
            draws["test-time"] = partial(sweeps.test_time, self.test_time)
        for name, fitted in self.parametric.items():
            draws[f"observed_{name}"] = partial(parametric_figures.observed, fitted)
        if "training" in self.parametric:
            fitted = self.parametric["training"]
            draws["profiles_training"] = lambda: parametric_figures.profiles(fitted)
            draws["contours"] = lambda: parametric_figures.contours(fitted)
            draws["frontiers"] = lambda: parametric_figures.frontiers(self.table)
        out = []
        for name, draw in draws.items():
            try:
                out.append(draw())
            except InputError as error:
                self.refusals[f"figure {name}"] = str(error)
        return out


def study(table: Table, confidence: float = 0.95) -> Study:
    """Fit what the table's columns allow.

    Raises:
        InputError: when no law at all can be fitted, with the reason of each.
    """
    refusals: dict[str, str] = {}
    recurrence = curves = None
    try:
        recurrence = bias.judged(parabolas.fit_recurrence(table, confidence))
    except InputError as error:
        refusals["recurrence"] = str(error)
    try:
        curves = test_time.fit_test_time(table, confidence=confidence)
    except InputError as error:
        refusals["test-time"] = str(error)
    parametric = {}
    for name in ("training", "unified"):
        if name == "unified" and "n_loops" not in table.frame:
            continue  # the same rows as the training law, which says what is missing
        try:
            parametric[name] = fit_table(table, library.get(name), confidence=confidence)
        except InputError as error:
            refusals[name] = str(error)
    if recurrence is None and curves is None and not parametric:  # not looped: any table of N and D
        for name in ("chinchilla", "data-only", "params-only"):
            try:
                parametric[name] = fit_table(table, library.get(name), confidence=confidence)
            except InputError as error:
                refusals[name] = str(error)
                continue
            refusals.clear()
            break
    if recurrence is None and curves is None and not parametric:
        raise InputError("; ".join(f"{law}: {why}" for law, why in refusals.items()))
    return Study(table, recurrence, curves, parametric, refusals)


def load(source: str | Path, **options) -> Study:
    """`study` of a source; options as for `table.load.load`."""
    return study(table_load.load(source, **options))
