"""A law fitted to a table, by the procedure that is the law's own."""

from __future__ import annotations

from analysis.fitting.fit import Fit, fit_table
from analysis.fitting.options import FitOptions
from analysis.isoflop import bias, parabolas
from analysis.isoflop.power_law import PowerFit, fit_power_line
from analysis.laws.law import Law
from analysis.table.table import Table
from analysis.test_time import TestTime, fit_test_time

Fitted = parabolas.Recurrence | TestTime | Fit | PowerFit


def fitted(
    table: Table, form: Law | str, options: FitOptions, over: str | None = None, *, judged=True
) -> Fitted:
    """What `Choices.law` gave, fitted.

    Args:
        options: `recurrence`, `isoflop`, `power` and `test-time` use the confidence alone.
        over: the axis of `isoflop`.
        judged: say of parabolas what their grid does to them.
    """
    if form in ("recurrence", "isoflop"):
        axis = "mu" if form == "recurrence" else over or "N"
        found = parabolas.fit_isoflop(table, axis, options.confidence)
        return bias.judged(found) if judged else found
    if isinstance(form, str):
        return fit_power_line(table, options.confidence)
    if form.per_run:
        return fit_test_time(table, form, options.confidence)
    return fit_table(table, form, options)
