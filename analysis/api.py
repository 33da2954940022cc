"""What the verbs do, as plain functions: source and names in, results out.

Every function takes the options that the verbs share (`analysis.choices`), by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.choices import Choices, Reading
from analysis.errors import InputError
from analysis.fitting.result import FitResult
from analysis.table import load as table_load
from analysis.table import numbers
from analysis.table.columns import canonical, parse_columns

if TYPE_CHECKING:
    import pandas as pd

    from analysis.figures.gallery import Gallery
    from analysis.laws.law import Law
    from analysis.prediction import Answer
    from analysis.report.study import Study
    from analysis.table.load import Table

    Source = str | Path | pd.DataFrame


def load(source: Source, columns=None, where=(), drop_highest: int = 0, unit=None) -> Table:
    """The table of a source: a DataFrame, a file, a pattern, a folder, `bundled:NAME`."""
    how = Reading(columns=columns, where=where, drop_highest=drop_highest, unit=unit)
    return table_load.without_highest(how.table(source))


def fit_source(source: Source, law: str | None = None, **options: Any) -> FitResult:
    """Load a source and fit one law, by its name or as a formula; without one, what the table looks like.

    Args:
        options: columns, where, drop_highest, unit (how the table is read); fix, tie, bound (of the law's
            parameters); over (the axis of `isoflop`); and those of `FitOptions`.
    """
    choices = Choices.of(**options)
    table = choices.table(source, law)
    return fit_table(table, law or choices.law_of(table), choices)


def fit_table(table: Table, law: str, choices: Choices | None = None, **options: Any) -> FitResult:
    """Fit one law to a loaded table; `recurrence`, `isoflop`, `power` and `test-time` use `confidence` alone."""
    from analysis.fits import fitted

    choices = choices or Choices.of(**options)
    form = choices.law(law, table)
    if isinstance(form, str) or form.per_run:
        choices.refuse_unused(law)
    return fitted(table, form, choices.options, choices.over).result


def predict_source(source: Source, law: str, at: str | dict[str, float], **options: Any) -> Answer:
    """The target of a law at a setting: {"n_params": 1e9, "n_tokens": 2e10} or "N=1e9,D=2e10"."""
    from analysis.prediction import predict

    choices = Choices.of(**options)
    table = choices.table(source, law)
    form = choices.law(law, table)
    if isinstance(at, str):
        at = parse_setting(at, form)
    else:
        at = {canonical(k, "at", _columns_of(form)): v for k, v in at.items()}
    return predict(table, form, at, **choices.fitting)


def optimal_source(source: Source, budget: float, law: str, **options: Any) -> Answer:
    """The best setting for a budget of FLOPs: N* and D*, or mu* and D*."""
    from analysis.optima import optimal

    choices = Choices.of(**options)
    table = choices.table(source, law)
    form = choices.law(law, table)
    if isinstance(form, str):
        choices.refuse_unused(form)
    return optimal(table, budget, form, choices.over, **choices.fitting)


def study_source(source: Source, *laws: str, **options: Any) -> Study:
    """Everything that follows from a source, or the laws named alone."""
    from analysis.report.study import study

    choices = Choices.of(**options)
    return study(choices.table(source, *laws), laws, choices)


def plot_source(
    source: Source,
    *laws: str,
    only: str | tuple[str, ...] = (),
    ax: Any = None,
    to: float | None = None,
    width: float | None = None,
    style: str | Path | None = None,
    **options: Any,
) -> Gallery:
    """The figures that a source allows; in a notebook they show themselves.

    Args:
        laws: those to fit; without any, what the table's columns allow.
        only: names of figures, or their beginnings; with `ax` one of one panel.
        ax: matplotlib axes to draw in, or a list of as many as the figure has panels.
        to: FLOPs up to which laws over compute are drawn.
        width: of each figure in inches.
        style: a matplotlib style, by name or file.
    """
    from analysis.figures.drawing import Look
    from analysis.figures.gallery import gallery
    from analysis.report.study import Study

    choices = Choices.of(**options)
    found = Study(choices.table(source, *laws), laws, choices)
    return gallery(found, only, Look(width=width, style=style), to=to, ax=ax)


def _columns_of(law: Law | str) -> tuple[str, ...]:
    return () if isinstance(law, str) else law.columns


def parse_setting(text: str, law: Law | str = "") -> dict[str, float]:
    """`mu=8,D=1e10` as values by our names; a law may name the file's own columns."""
    out = {}
    for name, value in parse_columns(text, "--at", _columns_of(law)).items():
        number = numbers.one(value)
        if number is None:
            raise InputError(f"--at: {name} is {value!r}; a number is needed, like 7e9 or 7B.")
        out[name] = number
    return out
