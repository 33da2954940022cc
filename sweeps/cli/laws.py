"""The verbs of this room: fit, plot, report. `register` adds them to the one command `parcae`.

Results go to stdout, progress to stderr. Exit code 0: done; 1: the fit is not valid; 2 is the
caller's, for the `InputError` that wrong input raises. The libraries load inside the verbs.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
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


def _choices(
    columns: Columns = None,
    where: Where = None,
    drop_highest: Annotated[
        int, typer.Option(help="Leave out rows with loss at or above the K-th highest.")
    ] = 0,
    fix: Annotated[str | None, typer.Option(help="Hold parameters, like E=1.7,gamma=1.")] = None,
    tie: Annotated[
        str | None, typer.Option(help="Parameters that take one value, like alpha=beta.")
    ] = None,
    bound: Annotated[
        str | None, typer.Option(help="Ranges of parameters, like alpha=0:3,E=1:.")
    ] = None,
    over: Annotated[
        str | None, typer.Option(help="The axis of --law isoflop: N, D, mu or a column.")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="huber or log-lsq on log loss, or lsq on loss.")
    ] = "huber",
    delta: Annotated[float, typer.Option(help="Huber's threshold on log-loss residuals.")] = 1e-3,
    undertuned: Annotated[
        float,
        typer.Option(help="Weight of rows that the law lies above, like 10: no run beats it."),
    ] = 1.0,
    starts: Annotated[int, typer.Option(help="Random starts of the search.")] = 16,
    interval: Annotated[
        str | None, typer.Option(help="bootstrap, block, profile, linear or none.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of a bootstrap.")] = 1000,
    confidence: Annotated[float, typer.Option(help="Of every interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of starts and resamples.")] = 0,
) -> None:
    """The options that mean the same in every verb that fits."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the options of `_choices` ask for, once for every verb that fits."""

    columns: str | None
    where: tuple[str, ...]
    drop_highest: int
    changes: dict[str, str | None]  # fix, tie, bound
    over: str | None
    options: dict  # of FitOptions

    def table(self, source: str, law: str = ""):
        """The rows; a law that is a formula may use the file's own columns."""
        from analysis import api

        read = api.Source(
            name=source, columns=self.columns, where=self.where, drop_highest=self.drop_highest
        )
        own = (self.over,) if self.over else ()
        return read.table(law, own)

    def law(self, law: str, table):
        """A name that has a fitter of its own stays one; any other is a `Law`, changed as asked."""
        from analysis import api
        from analysis.laws import library

        changes = api.Changes(**self.changes)
        if law in library.OTHER_LAWS and not changes:
            return law
        return api.law_of(law, table, changes)


def fits(verb):
    """Give a verb the options of `_choices`; it takes them as one `Chosen`, its last argument."""
    own, shared = (inspect.signature(f, eval_str=True) for f in (verb, _choices))
    wanted = [p.replace(kind=p.KEYWORD_ONLY) for p in shared.parameters.values()]
    mine = [p.replace(kind=p.KEYWORD_ONLY) for p in list(own.parameters.values())[:-1]]
    mine = [p for p in mine if p.name not in shared.parameters]
    clash = {p for p in own.parameters if p in shared.parameters}
    wanted = [
        own.parameters[p.name].replace(kind=p.KEYWORD_ONLY) if p.name in clash else p
        for p in wanted
    ]

    @functools.wraps(verb)
    def run(**given):
        rest = {p.name: given.pop(p.name) for p in wanted if p.name not in clash}
        changes = {n: rest.pop(n) for n in ("fix", "tie", "bound")}
        named = {"starts": "n_starts", "resamples": "n_resamples"}
        read = {n: rest.pop(n) for n in ("columns", "drop_highest", "over")}
        where = tuple(rest.pop("where") or ())
        options = {named.get(n, n): v for n, v in rest.items()}
        return verb(**given, chosen=Chosen(where=where, changes=changes, options=options, **read))

    ordered = sorted((*mine, *wanted), key=lambda p: p.default is not p.empty)
    run.__signature__ = own.replace(parameters=ordered)
    return run


def register(app: typer.Typer) -> None:
    """Add this room's verbs to an application."""
    for verb in (columns, fit, predict, optimal, loops, judge, compare, plot, report):
        app.command(verb.__name__)(verb)


def columns(source: Annotated[str, typer.Argument(help="A file with a table.")]) -> None:
    """Show what each column of a file was taken for, and the command that fits it.

    Examples:

        parcae columns points.csv
    """
    from analysis.table import guess

    typer.echo(guess.shown(source))


Law = Annotated[
    str,
    typer.Option(
        help="recurrence, isoflop, test-time, training, chinchilla, ..., or a formula like "
        '"E + A*N**-alpha + B*D**-beta".'
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The answer as JSON.")]


@fits
def fit(source: Source, law: Law, json: Json = False, chosen: Chosen = None) -> None:
    """Fit one law to a source: values, intervals, how the search went, and what is wrong.

    Exit code 0 when the fit is valid, 1 when it is not: then it says why.

    Examples:

        parcae fit bundled:parcae-140m --law recurrence

        parcae fit runs/demo --law test-time --json

        parcae fit points.csv --law chinchilla --columns N=params_m*1e6,D=tokens,loss=loss --tie alpha=beta

        parcae fit points.csv --law "E + A*N**-alpha + B*D**-beta" --bound alpha=0:1 --fix E=1.7

        parcae fit points.csv --law isoflop --over N
    """
    from analysis import api

    table = chosen.table(source, law)
    result = api.fit_table(
        table, law, api.Changes(**chosen.changes), over=chosen.over, **chosen.options
    )
    typer.echo(result.to_json() if json else result.report())
    if not result.valid:
        raise typer.Exit(1)


@fits
def predict(
    source: Source,
    law: Law,
    at: Annotated[str, typer.Option(help="The setting, like mu=8,D=1e10,T=4.")],
    json: Json = False,
    chosen: Chosen = None,
) -> None:
    """The loss that a fitted law gives at one setting, with its interval.

    Examples:

        parcae predict bundled:parcae-140m --law training --at mu=8,D=11.2e9

        parcae predict points.csv --law "E + A*N**-a + B*D**-a" --at N=1e9,D=2e10
    """
    from analysis import api
    from analysis import prediction as answers

    table = chosen.table(source, law)
    form = chosen.law(law, table)
    _answer(answers.predict(table, form, api.parse_setting(at), **chosen.options), json)


@fits
def optimal(
    source: Source,
    budget: Annotated[float, typer.Option(help="FLOPs, by the source's counting rule.")],
    law: Law = "recurrence",
    json: Json = False,
    chosen: Chosen = None,
) -> None:
    """The best setting for a budget, with intervals: mu* and D*, or N* and D*.

    Says whether the budget lies inside what was measured.

    Examples:

        parcae optimal bundled:parcae-140m --budget 3.2e19

        parcae optimal bundled:parcae-140m --budget 1e20 --law training

        parcae optimal points.csv --budget 1e23 --law chinchilla
    """
    from analysis import prediction as answers

    table = chosen.table(source, law)
    form = chosen.law(law, table)
    options = chosen.options | ({"over": chosen.over} if chosen.over else {})
    _answer(answers.optimal(table, budget, form, **options), json)


def loops(
    source: Source,
    loss: Annotated[float, typer.Option(help="The loss to reach, nats per token.")],
    at: Annotated[
        str | None,
        typer.Option(help="mu=8,D=1e10: by the unified law, instead of each run's own curve."),
    ] = None,
    json: Json = False,
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


@fits
def judge(source: Source, law: Law, json: Json = False, chosen: Chosen = None) -> None:
    """Whether a law holds where it was not fitted: held-out errors, forms compared, single runs' weight.

    Examples:

        parcae judge bundled:parcae-140m --law training

        parcae judge bundled:nano-isoflop --law test-time --where "mean_recurrence>1"
    """
    import json as json_module

    from analysis import api
    from analysis.validate import judge as judged

    table = chosen.table(source, law)
    tables = judged(table, chosen.law(law, table), **chosen.options)
    if json:
        typer.echo(json_module.dumps(tables, indent=2))
        return
    for name, rows in tables.items():
        typer.echo(f"{name}\n{api.as_text(rows)}\n")


def compare(
    looped: Annotated[str, typer.Argument(help="A table of looped models.")],
    plain: Annotated[str, typer.Argument(help="A table of Transformers, at least two sizes.")],
    metric: Annotated[
        str, typer.Option(help="loss, or another column of both tables, like perplexity or core.")
    ] = "loss",
    columns: Columns = None,
    json: Json = False,
) -> None:
    """What looping gains: relative quality between sizes, and the speed-up at equal loss.

    Examples:

        parcae compare looped.csv transformers.csv

        parcae compare looped.csv transformers.csv --metric core
    """
    import json as json_module

    from analysis import api
    from analysis.comparison import compare as compared

    found = compared(looped, plain, metric, columns)
    typer.echo(json_module.dumps(found.to_dict(), indent=2) if json else found.report(api.as_text))


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
