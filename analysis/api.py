"""What the verbs do, as plain functions: source and names in, results out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analysis.errors import InputError
from analysis.fitting.options import FitOptions
from analysis.fitting.result import FitResult
from analysis.laws import library
from analysis.table import load as table_load
from analysis.table.columns import parse_columns

if TYPE_CHECKING:
    from analysis.report.study import Study
    from analysis.table.load import Table


def fit_source(
    source: str | Path,
    law: str,
    *,
    columns: str | dict[str, str] | None = None,
    where: tuple[str, ...] = (),
    drop_highest: int = 0,
    fix: str | None = None,
    **options,
) -> FitResult:
    """Load a source and fit one law by its registry name.

    Args:
        columns: as `--columns` or as a mapping, for a file that is not a records table.
        drop_highest: leave out rows whose loss is at or above the K-th highest.
        fix: shape parameters held, like "gamma=1".
        options: of `FitOptions`.

    Raises:
        InputError: for anything wrong with the source, the law's name or an option.
    """
    table = load(source, columns, where)
    return fit_table(_without_highest(table, drop_highest), law, fix=_fixed(fix), **options)


def fit_table(table: Table, law: str, fix: dict[str, float] | None = None, **options) -> FitResult:
    """Fit one law to a loaded table; `recurrence`, `power` and `test-time` use `confidence` alone.

    Args:
        fix: shape parameters of a parametric law to hold at these values.

    Raises:
        InputError: an unknown law or option, or data the law cannot bear.
    """
    chosen = FitOptions(**options)
    if fix and law in library.OTHER_LAWS:
        raise InputError(f"--fix: law {law!r} has no shape parameter to hold.")
    if law == "recurrence":
        from analysis.isoflop import bias
        from analysis.isoflop.parabolas import fit_recurrence

        return bias.judged(fit_recurrence(table, chosen.confidence)).result
    if law == "power":
        from analysis.isoflop.power_law import fit_power

        return fit_power(table, chosen.confidence)
    form = library.get(law).fixing(**(fix or {}))
    if form.per_run:
        from analysis.test_time import fit_test_time

        return fit_test_time(table, law, chosen.confidence).result
    from analysis.fitting import fit

    return fit.fit_table(table, form, chosen).result


def study_source(
    source: str | Path, columns: str | dict[str, str] | None = None, where: tuple[str, ...] = ()
) -> Study:
    """Everything that follows from a source."""
    from analysis.report.study import study

    return study(load(source, columns, where))


def parse_setting(text: str) -> dict[str, float]:
    """`mu=8,D=1e10` as values by our names.

    Raises:
        InputError: an unknown quantity or a value that is not a number.
    """
    out = {}
    for name, value in parse_columns(text, option="--at").items():
        try:
            out[name] = float(value)
        except ValueError as error:
            raise InputError(f"--at: {name} is {value!r}; a number is needed.") from error
    return out


def judge_table(table: Table, law: str) -> dict[str, list[dict]]:
    """Whether a law holds where it was not fitted: `analysis.validate.judge`."""
    from analysis.validate import judge

    return judge(table, law)


def as_text(rows: list[dict]) -> str:
    """Rows as an aligned table."""
    import pandas as pd

    return pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep="-")


def load(source, columns=None, where=()) -> Table:
    """`analysis.table.load.load`, with columns as text too."""
    if isinstance(columns, str):
        columns = parse_columns(columns)
    return table_load.load(source, columns, where)


def _fixed(text: str | None) -> dict[str, float]:
    out = {}
    for part in (text or "").split(","):
        name, _, value = (x.strip() for x in part.partition("="))
        try:
            if part:
                out[name] = float(value)
        except ValueError as error:
            raise InputError(
                f"--fix: {part!r} is not NAME=NUMBER; write it like gamma=1."
            ) from error
    return out


def _without_highest(table: Table, k: int) -> Table:
    if k == 0:
        return table
    if k < 0 or k >= len(table.frame) or "val_loss" not in table.frame:
        raise InputError(
            f"--drop-highest {k}: needs a number from 1 to {len(table.frame) - 1} and a val_loss column."
        )
    limit = table.frame.val_loss.nlargest(k).iloc[-1]
    return table.keep(
        table.frame.val_loss < limit, f"loss at or above the {k}th highest, {limit:.4f}"
    )
