"""The verbs of this room: fit, plot, report. `register` adds them to the one command `parcae`.

Results go to stdout, progress to stderr. Exit code 0: done; 1: the fit is not valid; 2 is the
caller's, for the `InputError` that wrong input raises. The libraries load inside the verbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        help="bundled:parcae-140m, a sweep folder, a .parquet, .csv, .tsv or .jsonl file, "
        "wandb:ENTITY/PROJECT, or a folder of W&B runs."
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(help='Which column is which, like N="Model Size",C="Training FLOP",loss=loss.'),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        help='Keep rows that meet it, like "mu>1" or "State=finished"; the file\'s own columns too.'
    ),
]


def register(app: typer.Typer) -> None:
    """Add this room's verbs to an application."""
    for verb in (fit, predict, optimal, loops, judge, plot, report):
        app.command(verb.__name__)(verb)


def fit(
    source: Source,
    law: Annotated[str, typer.Option(help="recurrence, test-time, training, chinchilla, ...")],
    json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
    columns: Columns = None,
    where: Where = None,
    drop_highest: Annotated[
        int, typer.Option(help="Leave out rows with loss at or above the K-th highest.")
    ] = 0,
    fix: Annotated[
        str | None, typer.Option(help="Hold a shape parameter, like gamma=1 of the unified law.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="huber or log-lsq on log loss, or lsq on loss.")
    ] = "huber",
    delta: Annotated[float, typer.Option(help="Huber's threshold on log-loss residuals.")] = 1e-3,
    starts: Annotated[int, typer.Option(help="Random starts of the search.")] = 16,
    interval: Annotated[
        str | None, typer.Option(help="bootstrap, block, profile, linear or none.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of a bootstrap.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of every interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of starts and resamples.")] = 0,
) -> None:
    """Fit one law to a source: values, intervals, how the search went, and what is wrong.

    Exit code 0 when the fit is valid, 1 when it is not: then it says why.

    Examples:

        parcae fit bundled:parcae-140m --law recurrence

        parcae fit runs/demo --law test-time --json

        parcae fit points.csv --law chinchilla --columns N=params_m*1e6,D=tokens,loss=loss

        parcae fit runs/demo --law unified --fix gamma=1 --where "mean_recurrence>1"
    """
    from analysis import api

    result = api.fit_source(
        source,
        law,
        columns=columns,
        where=tuple(where or ()),
        drop_highest=drop_highest,
        fix=fix,
        loss=loss,
        delta=delta,
        n_starts=starts,
        interval=interval,
        n_resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    typer.echo(result.to_json() if json else result.report())
    if not result.valid:
        raise typer.Exit(1)


def predict(
    source: Source,
    law: Annotated[str, typer.Option(help="training, unified, chinchilla, iso-depth or frontier.")],
    at: Annotated[str, typer.Option(help="The setting, like mu=8,D=1e10,T=4.")],
    json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
    columns: Columns = None,
    where: Where = None,
) -> None:
    """The loss that a fitted law gives at one setting, with its interval.

    Examples:

        parcae predict bundled:parcae-140m --law training --at mu=8,D=11.2e9

        parcae predict runs/demo --law unified --at mu=4,D=5e6,T=8
    """
    from analysis import api
    from analysis import predict as answers

    table = api.load(source, columns, tuple(where or ()))
    _answer(answers.predict(table, law, api.parse_setting(at)), json)


def optimal(
    source: Source,
    budget: Annotated[float, typer.Option(help="FLOPs, by the source's counting rule.")],
    law: Annotated[str, typer.Option(help="recurrence or training.")] = "recurrence",
    json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
    columns: Columns = None,
    where: Where = None,
) -> None:
    """The best mean recurrence and number of tokens for a budget, with intervals.

    Says whether the budget lies inside what was measured.

    Examples:

        parcae optimal bundled:parcae-140m --budget 3.2e19

        parcae optimal bundled:parcae-140m --budget 1e20 --law training
    """
    from analysis import api
    from analysis import predict as answers

    _answer(answers.optimal(api.load(source, columns, tuple(where or ())), budget, law), json)


def loops(
    source: Source,
    loss: Annotated[float, typer.Option(help="The loss to reach, nats per token.")],
    at: Annotated[
        str | None,
        typer.Option(help="mu=8,D=1e10: by the unified law, instead of each run's own curve."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
    columns: Columns = None,
    where: Where = None,
) -> None:
    """How many loops at test time reach a loss, by each run's own curve, with intervals.

    Examples:

        parcae loops bundled:nano-isoflop --loss 1.5 --where "mean_recurrence>1"

        parcae loops runs/demo --loss 1.6 --at mu=6,D=4e6
    """
    from analysis import api
    from analysis.loops import loops_to_reach

    table = api.load(source, columns, tuple(where or ()))
    _answer(loops_to_reach(table, loss, None if at is None else api.parse_setting(at)), json)


def judge(
    source: Source,
    law: Annotated[str, typer.Option(help="recurrence, test-time, or a parametric law.")],
    json: Annotated[bool, typer.Option("--json", help="The tables as JSON.")] = False,
    columns: Columns = None,
    where: Where = None,
) -> None:
    """Whether a law holds where it was not fitted: held-out errors, forms compared, single runs' weight.

    Examples:

        parcae judge bundled:parcae-140m --law training

        parcae judge bundled:nano-isoflop --law test-time --where "mean_recurrence>1"
    """
    import json as json_module

    from analysis import api

    tables = api.judge_table(api.load(source, columns, tuple(where or ())), law)
    if json:
        typer.echo(json_module.dumps(tables, indent=2))
        return
    for name, rows in tables.items():
        typer.echo(f"{name}\n{api.as_text(rows)}\n")


def _answer(answer, json: bool) -> None:
    typer.echo(answer.to_json() if json else answer.report())
    if not answer.valid:
        raise typer.Exit(1)


def plot(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")],
    columns: Columns = None,
    where: Where = None,
) -> None:
    """Draw every figure that a source allows, as PNG, PDF and CSV; print the files written.

    Examples:

        parcae plot bundled:parcae-140m --out figures
    """
    from analysis import api

    study = api.study_source(source, columns=columns, where=tuple(where or ()))
    drawings = study.drawings()
    for law, why in study.refusals.items():
        typer.echo(f"{law}: not drawn: {why}", err=True)
    for drawing in drawings:
        for path in drawing.save(out):
            typer.echo(str(path))


def report(
    source: Annotated[
        list[str], typer.Argument(help="One or more sources, told apart on the page.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    columns: Columns = None,
    where: Where = None,
) -> None:
    """Write one self-contained HTML page on one or more sources; print a line per law and the path.

    Examples:

        parcae report bundled:parcae-140m runs/demo --out report.html
    """
    from analysis import api
    from analysis.report.html import write_report

    studies = [api.study_source(s, columns=columns, where=tuple(where or ())) for s in source]
    write_report(studies, out)
    for study in studies:
        for line in study.summaries():
            typer.echo(line)
    typer.echo(str(out))
