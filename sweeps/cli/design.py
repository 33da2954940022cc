"""`parcae design`: which runs to make. Light to import; the verb imports what it needs."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from analysis.errors import InputError
from sweeps.cli.tables.columns import AsJson


def design(
    pool: Annotated[
        str | None,
        typer.Option(help="A table of candidate runs, with their costs; any source of `fit`."),
    ] = None,
    law: Annotated[
        str | None, typer.Option(help="With --pool: a law's name, or a formula.")
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(help="With --pool: the column of costs, or an expression like 6*N*D."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="With --pool: of the whole pool's cost that may be spent.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="gamma_mu (default), gamma_D, mu@C or loss@C; with --pool: the rows to predict, like "
            "'N>1e9' (default: split=test)."
        ),
    ] = None,
    flops: Annotated[float | None, typer.Option(help="What a sweep may spend: its spec.")] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="With --flops: an isoflop spec, whose other keys the new one takes."),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(help="With --flops: paper:140m, parameters (E=..,X=..) or records."),
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="With --flops: of one run's log loss, like 0.002.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --flops: the spec file to write.")] = None,
    largest: Annotated[
        float | None,
        typer.Option(
            help="With --flops: FLOPs that no single run exceeds. There is no option for slots: they change what is "
            "waited for and not what is learnt; with S of them, TOTAL/S here keeps one run from being waited for."
        ),
    ] = None,
    memory: Annotated[
        float | None, typer.Option(help="With --flops: GiB that no run exceeds.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="With --pool: a column of groups, fitted each by itself.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help='With --pool: which column is which, like N="Model Size",loss=loss.'),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help='With --pool: rows that meet it, like "mu>1".')
    ] = None,
    bound: Annotated[
        str | None, typer.Option(help="With --pool: ranges of parameters, like alpha=0:3,E=1:.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --pool: of the starts of every fit; default: 0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose runs that tell most for their cost.

    With --pool: rows of a table of candidates, in the order they should be run, counted from 0.
    With --flops: a spec for `parcae run`, beside the grid of the spec that it follows.

    Examples:

        parcae design --flops 5e19 --like sweeps/specs/paper-140m-isoflop.yaml --prior paper:140m --out my.yaml

        parcae design --pool runs.csv --law chinchilla --cost 6*N*D --share 0.1 --target "N>1e9"

        parcae design --pool runs.csv --law "E + A*N**-a + B*D**-b" --cost flops --share 0.1 --json
    """
    if (pool is None) == (flops is None):
        raise InputError("design: give either --pool FILE or --flops TOTAL.")
    only_flops = {"--like": like, "--prior": prior, "--out": out}
    only_pool = {"--law": law or None, "--cost": cost or None, "--share": share}
    mode, needed, other = (
        (
            "--pool",
            only_pool,
            only_flops | {"--noise": noise, "--largest": largest, "--memory": memory},
        )
        if flops is None
        else (
            "--flops",
            only_flops,
            only_pool
            | {
                "--by": by,
                "--columns": columns,
                "--where": where or None,
                "--bound": bound,
                "--seed": seed,
            },
        )
    )
    if missing := [name for name, value in needed.items() if value is None]:
        raise InputError(f"design {mode}: {missing[0]} is missing; give it.")
    if odd := [name for name, value in other.items() if value is not None]:
        raise InputError(
            f"design {mode}: {odd[0]} belongs to the other way to choose; leave it out."
        )
    if flops is not None:
        assert like is not None, "checked above"
        assert prior is not None, "checked above"
        assert out is not None, "checked above"
        _of_flops(flops, like, prior, noise, target or "gamma_mu", out, largest, memory, as_json)
        return
    assert pool is not None, "one of the two is given"
    assert law is not None, "checked above"
    assert cost is not None, "checked above"
    assert share is not None, "checked above"
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
        where=tuple(where or ()),
        changes=Changes(bound=bound),
        options=Options(seed=seed or 0),
    )
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    spent = f"{found.spent:.4g} of {found.of:.4g} ({found.spent / found.of:.2%})"
    typer.echo(f"{len(found.rows)} runs for {spent}; target: {found.target}")
    for note in found.notes:
        typer.echo(note)
    for row, choice in zip(found.rows, found.choices, strict=True):
        typer.echo(f"row {row:>5}  cost {choice.cost:<10.4g} {choice.reason}")


def _of_flops(
    flops, like: Path, prior: str, noise, target: str, out: Path, largest, memory, as_json
):
    """The spec file, and what it and the grid will tell."""
    from analysis.design import priors
    from analysis.design.optimum import parse_target
    from sweeps.cli.sweep import load_plan
    from sweeps.design.proposal import Limits, propose

    parse_target(target)
    if not 0 < flops < math.inf:
        raise InputError(f"--flops is {flops:g}; FLOPs above 0 are needed, like 1e19.")
    believed = priors.read(prior, noise)
    limits = Limits(largest_flops=largest, memory_bytes=None if memory is None else memory * 2**30)
    name = re.sub(r"[^a-z0-9._-]", "-", out.stem.lower()).lstrip("._-")[:64]
    if not name:
        raise InputError(f"--out {out}: the sweep is named after it; use letters a-z or digits.")
    found = propose(load_plan(like, assume=True), believed, target, flops, limits, name)
    options = {"flops": flops, "like": like, "prior": prior, "target": target, "noise": noise}
    options |= {"largest": largest, "memory": memory}
    words = (
        f"--{k} {shlex.quote(f'{v:g}' if isinstance(v, float) else str(v))}"
        for k, v in options.items()
        if v is not None
    )
    found.write(out, " ".join(("parcae design", *words)), like)
    if as_json:
        typer.echo(json.dumps(found.to_dict() | {"file": str(out)}, indent=1))
        return
    for line in found.lines():
        typer.echo(line)
    typer.echo(str(out))
