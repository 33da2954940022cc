"""`parcae design`: which runs to make. Light to import; the verb imports what it needs."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from analysis.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="design")(design)


def design(
    pool: Annotated[
        Path | None, typer.Option(help="A table of candidate runs, with their costs.")
    ] = None,
    law: Annotated[str, typer.Option(help="With --pool: a law's name, or a formula.")] = "",
    cost: Annotated[
        str, typer.Option(help="With --pool: the column of costs, or an expression like 6*N*D.")
    ] = "",
    share: Annotated[
        float | None, typer.Option(help="With --pool: of the whole pool's cost that may be spent.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="With --pool: the rows to predict, like 'N>1e9'; default: split=test."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="With --pool: a column of groups, fitted each by itself.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help='Which column is which, like N="Model Size",loss=loss.')
    ] = None,
    bound: Annotated[
        str | None, typer.Option(help="Ranges of parameters, like alpha=0:3,E=1:.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the starts of every fit.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Choose runs that tell most for their cost.

    With --pool: rows of a table of candidates, in the order they should be run, counted from 0.

    Examples:

        parcae design --pool runs.csv --law chinchilla --cost 6*N*D --share 0.1 --target "N>1e9"

        parcae design --pool runs.csv --law "E + A*N**-a + B*D**-b" --cost flops --share 0.1 --json
    """
    if pool is None:
        raise InputError("design: give --pool FILE.")
    for name, value in (("--law", law), ("--cost", cost), ("--share", share)):
        if not value:
            raise InputError(f"design --pool {pool}: {name} is missing; give it.")
    from analysis.choices import Changes
    from analysis.design import candidates
    from analysis.design.pool import Options
    from analysis.table.columns import parse_columns

    found = candidates.design(
        pool,
        law,
        cost=cost,
        share=share,
        target=target,
        by=by,
        columns=None if columns is None else parse_columns(columns),
        changes=Changes(bound=bound),
        options=Options(seed=seed),
    )
    if json:
        typer.echo(json_module.dumps(found.to_dict()))
        return
    spent = f"{found.spent:.4g} of {found.of:.4g} ({found.spent / found.of:.2%})"
    typer.echo(f"{len(found.rows)} runs for {spent}; target: {found.target}")
    for row, choice in zip(found.rows, found.choices, strict=True):
        typer.echo(f"row {row:>5}  cost {choice.cost:<10.4g} {choice.reason}")
