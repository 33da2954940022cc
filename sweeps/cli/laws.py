"""The verbs of laws: fit, predict, optimal, loops, judge, compare.

Results go to stdout, progress to stderr. Exit code 0: done; 1: the fit is not valid; 2 is the
caller's, for the `InputError` that wrong input raises. The libraries load inside the verbs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.options import MaybeLaw, Source, fits, reads
from sweeps.cli.tables.columns import AsJson, echo, terminal_width

if TYPE_CHECKING:
    from analysis.choices import Choices
    from analysis.table.load import Table


def columns(source: Source) -> None:
    """Show what each column of a file was taken for, and the command that fits it.

    Examples:

        parcae columns points.csv
    """
    from analysis.table import guess, load

    found = load.rows(source)
    typer.echo(guess.shown(source, found.frame, own=found.own))


@fits
def fit(
    source: Source, law: MaybeLaw = None, as_json: AsJson = False, choices: Choices = None
) -> None:
    """Fit one law to a source: values, intervals, how the search went, and what is wrong.

    Exit code 0 when the fit is valid, 1 when it is not: then it says why.

    Examples:

        parcae fit bundled:parcae-140m --law recurrence

        parcae fit demo --law test-time --json

        parcae fit points.csv --law chinchilla --columns N=params_m*1e6,D=tokens,loss=loss --tie alpha=beta

        parcae fit points.csv --law "E + A*N**-alpha + B*D**-beta" --bound alpha=0:1 --fix E=1.7

        parcae fit points.csv --law isoflop --over N
    """
    from analysis import api

    table, law = _table_and_law(source, law, choices)
    result = api.fit_table(table, law, choices)
    typer.echo(result.to_json()) if as_json else echo(result.report())
    if not result.valid:
        raise typer.Exit(1)


def _table_and_law(
    source: str, law: str | None, choices: Choices, *, valued: bool = False
) -> tuple[Table, str]:
    """The rows and the law; one that the table looks like is said on stderr."""
    from analysis.table.columns import LAW_COLUMNS, info

    table = choices.table(source, law)
    if law is None:
        law = choices.law_of(table, valued=valued)
        has = ", ".join(info(n)[0] for n in LAW_COLUMNS if n in table.frame)
        typer.echo(f"no --law: a table of {has} looks like {law}", err=True)
    return table, law


@fits
def predict(
    source: Source,
    at: Annotated[str, typer.Option(help="The setting, like mu=8,D=1e10,T=4.")],
    law: MaybeLaw = None,
    as_json: AsJson = False,
    choices: Choices = None,
) -> None:
    """The loss that a fitted law gives at one setting, with its interval.

    Examples:

        parcae predict bundled:parcae-140m --law training --at mu=8,D=11.2e9

        parcae predict points.csv --law "E + A*N**-a + B*D**-a" --at N=1e9,D=2e10
    """
    from analysis import api, prediction

    table, law = _table_and_law(source, law, choices, valued=True)
    form = choices.law(law, table)
    _answer(
        prediction.predict(table, form, api.parse_setting(at, form), **choices.fitting), as_json
    )


@fits
def optimal(
    source: Source,
    budget: Annotated[float, typer.Option(help="FLOPs, by the source's counting rule.")],
    law: MaybeLaw = None,
    as_json: AsJson = False,
    choices: Choices = None,
) -> None:
    """The best setting for a budget, with intervals: mu* and D*, or N* and D*.

    Says whether the budget lies inside what was measured.

    Examples:

        parcae optimal bundled:parcae-140m --budget 3.2e19

        parcae optimal bundled:parcae-140m --budget 1e20 --law training

        parcae optimal points.csv --budget 1e23 --law chinchilla
    """
    from analysis import optima

    table, law = _table_and_law(source, law, choices)
    form = choices.law(law, table)
    if isinstance(form, str):
        choices.refuse_unused(form)
    _answer(optima.optimal(table, budget, form, choices.over, **choices.fitting), as_json)


@fits
def loops(
    source: Source,
    loss: Annotated[float, typer.Option(help="The loss to reach, nats per token.")],
    at: Annotated[
        str | None,
        typer.Option(help="mu=8,D=1e10: by the unified law, instead of each run's own curve."),
    ] = None,
    resamples: Annotated[
        int | None, typer.Option(help="Refits of the unified law, with --at; 500 without.")
    ] = None,
    as_json: AsJson = False,
    choices: Choices = None,
) -> None:
    """How many loops at test time reach a loss, by each run's own curve, with intervals.

    Examples:

        parcae loops bundled:nano-isoflop --loss 1.5 --where "mean_recurrence>1"

        parcae loops runs/demo --loss 1.6 --at mu=6,D=4e6
    """
    from analysis import api
    from analysis.loops import loops_to_reach

    table = choices.table(source)
    setting = None if at is None else api.parse_setting(at)
    if resamples is not None:
        choices.fitting["n_resamples"] = resamples
    law = choices.law("unified" if at is not None else "test-time", table)
    if at is None:
        choices.refuse_unused("test-time")
    _answer(loops_to_reach(table, loss, setting, law, **choices.fitting), as_json)


@fits
def judge(
    source: Source, law: MaybeLaw = None, as_json: AsJson = False, choices: Choices = None
) -> None:
    """Whether a law holds where it was not fitted: held-out errors, forms compared, single runs' weight.

    Examples:

        parcae judge bundled:parcae-140m --law training

        parcae judge bundled:nano-isoflop --law test-time --where "mean_recurrence>1"
    """
    from analysis.validate import judge as judged

    table, law = _table_and_law(source, law, choices)
    form = choices.law(law, table)
    if isinstance(form, str):
        choices.refuse_unused(form)
    _tables(judged(table, form, **choices.fitting), as_json)


def _tables(tables: dict[str, list[dict]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(tables, indent=2, allow_nan=False))
        return
    for name, rows in tables.items():
        typer.echo(f"{name}\n{_as_text(rows)}\n")


def _as_text(rows: list[dict]) -> str:
    """Rows as an aligned table; a terminal gets columns that do not fit below the others."""
    import pandas as pd

    return pd.DataFrame(rows).to_string(
        index=False, float_format="{:.4g}".format, na_rep="-", line_width=terminal_width()
    )


@reads
def compare(
    looped: Annotated[str, typer.Argument(help="A table of looped models.")],
    plain: Annotated[str, typer.Argument(help="A table of Transformers, at least two sizes.")],
    metric: Annotated[
        str, typer.Option(help="loss, or another column of both tables, like perplexity or core.")
    ] = "loss",
    as_json: AsJson = False,
    choices: Choices = None,
) -> None:
    """What looping gains: relative quality between sizes, and the speed-up at equal loss.

    Examples:

        parcae compare looped.csv transformers.csv

        parcae compare looped.csv transformers.csv --metric core
    """
    from analysis.comparison import compare as compared

    found = compared(looped, plain, metric, choices.reading)
    typer.echo(json.dumps(found.to_dict(), indent=2) if as_json else found.report(_as_text))


def _answer(answer, as_json: bool) -> None:
    typer.echo(answer.to_json()) if as_json else echo(answer.report())
    if not answer.valid:
        raise typer.Exit(1)
