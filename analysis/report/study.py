"""Everything that follows from one source: each law that its columns allow, and its figures.

Fits are made when they are first asked for, so that one figure costs one fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from analysis import known, validate
from analysis.choices import Choices
from analysis.errors import InputError, nearest
from analysis.figures import decisions as decision_figures
from analysis.figures import known as known_figures
from analysis.figures import laws as law_figures
from analysis.figures import parametric as parametric_figures
from analysis.figures import sweeps, words
from analysis.figures.drawing import Drawing
from analysis.fits import Fitted, fitted
from analysis.fitting.fit import Fit
from analysis.fitting.result import FitResult
from analysis.isoflop.parabolas import Recurrence
from analysis.isoflop.power_law import PowerFit
from analysis.laws import library
from analysis.laws.law import Law
from analysis.table import guess
from analysis.table import load as table_load
from analysis.table.load import Table
from analysis.test_time import TestTime

_JUDGED_STARTS = 4  # a judgement is dozens of refits near one that sixteen starts found
_PROFILED = 5  # parameters, at most: a profile is a hundred refits of each
_PROFILED_ROWS = 1000
_GO_ON = ("power_laws", "law_")  # figures that take FLOPs up to which a law is drawn


@dataclass(eq=False)
class Study:
    """One source, analysed. `refusals` says in words which law could not be tried, and why."""

    table: Table
    laws: tuple[str, ...] = ()  # those asked for; without any, what the columns allow
    choices: Choices = field(default_factory=Choices)
    intervals: bool = False  # figures need none of the parametric fits'
    # further figures, by name
    more: dict[str, Callable[..., Drawing]] = field(default_factory=dict)
    decisions: decision_figures.Decisions | None = None  # of an adaptive sweep
    refusals: dict[str, str] = field(default_factory=dict)  # law -> sentence
    _fits: dict[str, Fitted | None] = field(default_factory=dict)

    def fitted(self, law: str) -> Fitted | None:
        """The fit of a law, made once; None when it is refused."""
        if law not in self._fits:
            try:
                self._fits[law] = self._fit(law)
            except InputError as error:
                self._fits[law] = None
                self.refusals[law] = str(error)
        return self._fits[law]

    def _fit(self, law: str) -> Fitted:
        form, options = self.choices.law(law, self.table), self.choices.options
        if options.interval is None and not self.intervals:
            options = replace(options, interval="none")
        elif options.interval is None and isinstance(form, Law) and len(form.params) > _PROFILED:
            options = replace(options, interval="linear")  # profiles: `parcae fit`, ten seconds
        return fitted(self.table, form, options, self.choices.over, judged=self.intervals)

    @property
    def names(self) -> tuple[str, ...]:
        """The laws that are tried: those asked for, or what the columns allow."""
        if self.laws:
            return self.laws
        if self.choices.over is not None:  # an axis is of these alone
            return ("isoflop",)
        frame = self.table.frame
        looped: tuple[str, ...] = ()
        if "mean_recurrence" in frame:
            looped = ("recurrence", "test-time", "training")
            looped += ("unified",) if "n_loops" in frame else ()
        elif "n_loops" in frame:
            looped = ("test-time",)
        if looped and any(self.fitted(law) is not None for law in looped[:3]):
            return looped
        return self._of_any_table() or looped

    def _of_any_table(self) -> tuple[str, ...]:
        """The laws of a table without loops: the first of N, D that can be fitted, and isoFLOP."""
        before, self.refusals = self.refusals, {}
        if {"x", "y"} <= set(self.table.frame) and self.fitted("power") is not None:
            return ("power",)
        values = {str(n): self.table.frame[n] for n in self.table.frame}
        closed: tuple[str, ...] = ("isoflop",) if guess.has_isoflops(values) else ()
        of_size = "repeated" if guess.has_repeats(values) else "chinchilla"
        of_loss: tuple[str, ...] = (of_size, "data-only", "params-only", "frontier")
        if {"y", "val_loss"} <= set(values):
            closed += ("accuracy",)
            if not {"n_params", "n_tokens", "train_flops"} & set(values):
                of_loss = ()
        for law in of_loss:
            if self.fitted(law) is not None:
                self.refusals = {}
                return (*closed, law)
        found = tuple(law for law in closed if self.fitted(law) is not None)
        if not found:
            self.refusals = before | self.refusals
        return found

    # -- what was fitted

    @property
    def fits(self) -> dict[str, Fitted]:
        """Of the laws that are tried, those that were not refused."""
        return {n: found for n in self.names if (found := self.fitted(n)) is not None}

    @property
    def recurrence(self) -> Recurrence | None:
        law = next((n for n in self.names if n in ("recurrence", "isoflop")), None)
        found = None if law is None else self.fitted(law)
        return found if isinstance(found, Recurrence) else None

    @property
    def test_time(self) -> TestTime | None:
        found = [self.fitted(n) for n in self.names if n in library.TEST_TIME_FORMS]
        return next((f for f in found if isinstance(f, TestTime)), None)

    @property
    def parametric(self) -> dict[str, Fit]:
        """training, unified; of a table without loops chinchilla, or L(D), L(N)."""
        return {n: f for n, f in self.fits.items() if isinstance(f, Fit)}

    @property
    def results(self) -> tuple[FitResult, ...]:
        return tuple(f.result for f in self.fits.values())

    def require(self) -> Study:
        """Itself, once something has been fitted.

        Raises:
            InputError: when no law at all can be fitted, with the reason of each.
        """
        if not self.results:
            raise InputError("; ".join(f"{law}: {why}" for law, why in self.refusals.items()))
        return self

    def judgements(self) -> dict[str, list[dict]]:
        """Tables on whether the laws hold where they were not fitted, by title; as `parcae judge`."""
        out: dict[str, list[dict]] = {}
        for name in self.names:
            if name in ("unified", "isoflop", "power") or self.fitted(name) is None:
                continue  # unified: a minute of refits, `parcae judge --law unified`
            try:
                form = self.choices.law(name, self.table)
                few = {"n_starts": _JUDGED_STARTS} | self.choices.fitting
                tables = validate.judge(self.table, form, brief=True, **few)
            except InputError as error:
                out[f"{name}: {error}"] = []
                continue
            # the recurrence law's own tables hold it already
            out |= {f"{name}: {t}": r for t, r in tables.items() if "parabola" not in t}
        return out

    def summaries(self) -> list[str]:
        """One line per law: exponents with intervals, or why there are none; an adaptive sweep's own answer first."""
        return [
            *(() if self.decisions is None else (self.decisions.headline(),)),
            *self.headlines(),
            *(f.result.summary() for f in self.fits.values() if isinstance(f, (Fit, PowerFit))),
            *(f"{law} [{self.table.source}]: {why}" for law, why in self.refusals.items()),
        ]

    def headlines(self) -> list[str]:
        """The recurrence law and the test-time curves, a line each, where they could be fitted."""
        lines = [] if self.recurrence is None else [self.recurrence.result.summary()]
        return lines if self.test_time is None else [*lines, self.test_time.summary()]

    def headline(self) -> str:
        """One sentence: the main law's exponents or answer, on how many rows, and whether it stands."""
        if self.decisions is not None:
            return self.decisions.headline()
        results = self.results
        if not results:
            return "No law could be fitted."
        main = results[0]
        if main.law.startswith("test-time") and self.test_time is not None:
            return f"{self.test_time.summary().partition(']: ')[2]}."
        exponents = [p for p in main.params if p.name.startswith("gamma")] or main.params
        said = []
        for p in exponents:
            value = "no estimate" if p.value is None else f"{p.value:.3g}"
            if p.ci_low is not None and p.ci_high is not None:
                value += f" [{p.ci_low:.3g}, {p.ci_high:.3g}]"
            if not p.name.endswith("_enclosed"):
                said.append(f"{words.parameter(p.name)} = {value}")
        verdict = "valid" if main.valid else f"not valid: {main.problems[0]}"
        return f"{main.law.capitalize()} law: {', '.join(said)}; {main.n_obs} rows, {verdict}."

    # -- figures

    def figures(self) -> dict[str, Callable[..., Drawing]]:
        """Every figure that the laws allow, by name; a call makes it, fit included."""
        draws: dict[str, Callable[..., Drawing]] = {}
        if self.decisions is not None and len(self.decisions.known) > 1:
            draws["interval"] = partial(decision_figures.interval, self.decisions)
        if known.has_floor(self.table) and not self.laws:
            draws["loss_by_gap"] = partial(known_figures.loss_by_gap, self.table)
            draws["equal_flops"] = partial(known_figures.equal_flops, self.table)
        for law in self.names:
            form = self._form(law)
            if law in ("recurrence", "isoflop"):
                draws["isoflop"] = self._of(law, sweeps.isoflop)
                draws["power_laws"] = self._of(law, sweeps.power_laws)
            elif law == "power":
                draws["law_power"] = self._of(law, law_figures.power)
            elif form is not None and form.per_run:
                draws[law] = self._of(law, sweeps.test_time)
            elif form is not None:
                if draw := law_figures.figure_of(form):
                    draws[f"law_{form.name}"] = self._of(law, draw)
                draws[f"observed_{form.name}"] = self._of(law, parametric_figures.observed)
                if len(form.params) <= _PROFILED and len(self.table.frame) <= _PROFILED_ROWS:
                    draws[f"profiles_{form.name}"] = self._of(law, parametric_figures.profiles)
            if law == "training":
                draws["contours"] = self._of(law, parametric_figures.contours)
                draws["frontiers"] = partial(parametric_figures.frontiers, self.table)
        return draws | self.more

    def _form(self, law: str):
        try:
            form = self.choices.law(law, self.table)
        except InputError as error:
            self.refusals[law] = str(error)
            return None
        return None if isinstance(form, str) else form

    def _of(self, law: str, draw: Callable) -> Callable[..., Drawing]:
        """A figure of a law's fit."""

        def drawn(**options: Any) -> Drawing:
            found = self.fitted(law)
            if found is None:
                raise InputError("")  # the law's own refusal says why
            return draw(found, **options)

        return drawn

    def drawings(
        self, only: Sequence[str] = (), to: float | None = None, ax: Any = None
    ) -> list[Drawing]:
        """The figures that the fits allow, arguments as for `api.plot_source`; of the others `refusals` says why not.

        Raises:
            InputError: a name that fits no figure, or axes for several figures.
        """
        if to is not None and not 0 < to < float("inf"):
            raise InputError(f"--to is {to}; FLOPs above 0 are needed, like 1e24.")
        draws = _chosen(self.figures(), only)
        if ax is not None and len(draws) != 1:
            raise InputError(
                f"ax: one figure fits there and {len(draws)} are asked for: {', '.join(draws)}. Name one by only."
            )
        out = []
        for name, draw in draws.items():
            beyond = {"to": to} if name.startswith(_GO_ON) else {}
            try:
                out.append(draw(ax=ax, **beyond))
            except InputError as error:
                if str(error):
                    self.refusals[f"figure {name}"] = str(error)
        return out


def _chosen(draws: dict[str, Callable[..., Drawing]], only: Sequence[str]):
    if not only:
        return draws
    out: dict[str, Callable[..., Drawing]] = {}
    for wanted in only:
        plain = wanted.replace("-", "_")
        here = {n: d for n, d in draws.items() if n.replace("-", "_").startswith(plain)}
        if not here:
            raise InputError(
                f"--only {wanted}: no figure of that name{nearest(wanted, tuple(draws))}. This source allows "
                f"{', '.join(draws)}."
            )
        out |= here
    return out


def study(table: Table, laws: Sequence[str] = (), choices: Choices | None = None) -> Study:
    """Fit what the table's columns allow, or the laws named, with their intervals."""
    return Study(table, tuple(laws), choices or Choices(), intervals=True).require()


def load(source: str | Path, **options: Any) -> Study:
    """`study` of a source; options as for `table.load.load`."""
    return study(table_load.load(source, **options))
