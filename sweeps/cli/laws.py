"""The verbs of this room: fit, predict, plot, report, ... `register` adds them to the one command `parcae`.

Results go to stdout, progress to stderr. Exit code 0: done; 1: the fit is not valid; 2 is the
caller's, for the `InputError` that wrong input raises. The libraries load inside the verbs.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sweeps.cli.columns import echo, terminal_width

if TYPE_CHECKING:
    from analysis.choices import Choices
    from analysis.figures.decisions import Decisions
    from analysis.report.html import Part
    from analysis.table.load import Table

Source = Annotated[
    str,
    typer.Argument(
        help="A sweep's name, folder or URL, also while it runs; a .csv, .tsv, .jsonl, .parquet or .xlsx file; - for a pipe; "
        'a pattern in quotes, "runs/*.csv"; a folder of tables, Trainer states or TensorBoard events; '
        "wandb:ENTITY/PROJECT; bundled:parcae-140m."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="The answer as JSON.")]
Law = Annotated[
    str,
    typer.Option(
        help="recurrence, isoflop, test-time, training, chinchilla, ..., or a formula like "
        '"E + A*N**-alpha + B*D**-beta".'
    ),
]
MaybeLaw = Annotated[
    str | None,
    typer.Option(help="As for fit; without it, the law that the table looks like."),
]
Laws = Annotated[
    list[str] | None,
    typer.Option(
        "--law", help="As for fit, also several; without it, every law that the columns allow."
    ),
]


def _reading(
    columns: Annotated[
        str | None,
        typer.Option(
            help='Which column is which, like N="Model Size",C="Training FLOP",loss=loss; without it, columns '
            "with common names are recognised."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help='Keep rows that meet it, like "mu>1" or "State=finished"; the file\'s own columns too.'
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Of the file's losses: nats, bits, ppl, or bpb=BYTES with bytes per token."
        ),
    ] = None,
    drop_highest: Annotated[
        int, typer.Option(help="Leave out rows with loss at or above the K-th highest.")
    ] = 0,
) -> None:
    """The options that mean the same in every verb that reads a table."""


def _fitting(
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


_NAMED = {"starts": "n_starts", "resamples": "n_resamples"}  # as `FitOptions` calls them


def _with(*groups: Callable) -> Callable[[Callable], Callable]:
    """Give a verb the options of `groups`; it takes them as one `Choices`, its last argument.

    An option that the verb has of its own under the same name stays the verb's.
    """
    wanted = [p for g in groups for p in inspect.signature(g, eval_str=True).parameters.values()]

    def decorate(verb: Callable) -> Callable:
        signature = inspect.signature(verb, eval_str=True, locals={"Choices": object})
        own = list(signature.parameters.values())[:-1]
        taken = {p.name for p in own}
        shared = [p for p in wanted if p.name not in taken]

        @functools.wraps(verb)
        def run(**given: Any) -> Any:
            from analysis.choices import Choices

            rest = {_NAMED.get(p.name, p.name): given.pop(p.name) for p in shared}
            rest["where"] = tuple(rest["where"] or ())
            return verb(**given, choices=Choices.of(**rest))

        ordered = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *shared)]
        ordered.sort(key=lambda p: p.default is not p.empty)
        run.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in ordered}  # what typer reads
        return run

    return decorate


reads, fits = _with(_reading), _with(_reading, _fitting)


def register(app: typer.Typer) -> None:
    """Add this room's verbs to an application, and let `load` collect a sweep that runs."""
    _register_sweeps()
    for verb in (columns, fit, predict, optimal, loops, judge, compare, plot, curves, report):
        app.command(verb.__name__)(verb)


def _register_sweeps() -> None:
    from analysis.table import load

    load.register("sweep", load.Reader(claims=_is_sweep, read=_collected))


def _is_sweep(text: str) -> bool:
    """A sweep's folder or URL, or the name of one under runs/ where no file has that name."""
    from sweeps.storage.objects import is_url

    if is_url(text):
        return _is_sweep_at(text)
    folders = [Path(text)] if Path(text).exists() else [Path("runs") / text]
    return any((folder / "sweep.json").is_file() for folder in folders)


def _is_sweep_at(url: str) -> bool:
    """Whether a sweep's plan lies below a URL; one request, and none for a table or a web page."""
    from analysis.table.files import suffix
    from parcae_core.errors import UserError
    from sweeps.store import Store

    place, _, name = url.rstrip("/").rpartition("/")
    if url.startswith("http") or suffix(Path(name))[0]:
        return False
    with suppress(OSError, UserError):  # who reads the source says what is wrong with it
        store = Store(place, name)
        store.storage.pull([store.root / "sweep.json"])
        return (store.root / "sweep.json").is_file()
    return False


def _collected(text: str):
    """What has ended of a sweep, from its trials' folders: its table may be older, or not there yet."""
    from analysis.errors import InputError
    from analysis.table import load
    from sweeps.records import records_of
    from sweeps.store import open_sweep

    store = open_sweep(text)
    frame = records_of(store)
    sweep = store.sweep or {}
    planned = len(sweep.get("trials", ()))
    if frame is None:
        raise InputError(
            f"{text}: none of its {planned} trials has ended yet; `parcae status {text}` shows them."
        )
    ended = frame.trial_id.nunique()
    what = "candidates have been run" if sweep.get("design") == "adaptive" else "trials have ended"
    notes = [f"{ended} of {planned} {what}; the others are not in this table"]
    damaged = [f"{trial}: {problem}" for trial, problem in store.problems().items()]
    return load.Found(
        frame=frame, where=text, notes=(*(notes if ended < planned else ()), *damaged)
    )


def columns(source: Source) -> None:
    """Show what each column of a file was taken for, and the command that fits it.

    Examples:

        parcae columns points.csv
    """
    from analysis.table import guess

    typer.echo(guess.shown(source))


@fits
def fit(source: Source, law: MaybeLaw = None, json: Json = False, choices: Choices = None) -> None:
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
    typer.echo(result.to_json()) if json else echo(result.report())
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
    json: Json = False,
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
    _answer(prediction.predict(table, form, api.parse_setting(at, form), **choices.fitting), json)


@fits
def optimal(
    source: Source,
    budget: Annotated[float, typer.Option(help="FLOPs, by the source's counting rule.")],
    law: MaybeLaw = None,
    json: Json = False,
    choices: Choices = None,
) -> None:
    """The best setting for a budget, with intervals: mu* and D*, or N* and D*.

    Says whether the budget lies inside what was measured.

    Examples:

        parcae optimal bundled:parcae-140m --budget 3.2e19

        parcae optimal bundled:parcae-140m --budget 1e20 --law training

        parcae optimal points.csv --budget 1e23 --law chinchilla
    """
    from analysis import prediction

    table, law = _table_and_law(source, law, choices)
    over = {"over": choices.over} if choices.over else {}
    form = choices.law(law, table)
    if isinstance(form, str):
        choices.refuse_unused(form)
    _answer(prediction.optimal(table, budget, form, **choices.fitting, **over), json)


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
    json: Json = False,
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
    _answer(loops_to_reach(table, loss, setting, law, **choices.fitting), json)


@fits
def judge(
    source: Source, law: MaybeLaw = None, json: Json = False, choices: Choices = None
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
    _tables(judged(table, form, **choices.fitting), json)


def _tables(tables: dict[str, list[dict]], json: bool) -> None:
    import json as json_module

    if json:
        typer.echo(json_module.dumps(tables, indent=2, allow_nan=False))
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
    json: Json = False,
    choices: Choices = None,
) -> None:
    """What looping gains: relative quality between sizes, and the speed-up at equal loss.

    Examples:

        parcae compare looped.csv transformers.csv

        parcae compare looped.csv transformers.csv --metric core
    """
    import json as json_module

    from analysis.comparison import compare as compared

    found = compared(looped, plain, metric, choices.reading)
    typer.echo(json_module.dumps(found.to_dict(), indent=2) if json else found.report(_as_text))


def _answer(answer, json: bool) -> None:
    typer.echo(answer.to_json()) if json else echo(answer.report())
    if not answer.valid:
        raise typer.Exit(1)


Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="png (the default), pdf or svg; CSV and caption come always."),
]
Width = Annotated[float | None, typer.Option(help="Of each figure, in inches, like 3.25.")]
Style = Annotated[str | None, typer.Option(help="A matplotlib style: a .mplstyle file or a name.")]


@fits
def plot(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the figures.")],
    law: Laws = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Figures by name, or how it begins, like isoflop.")
    ] = None,
    format: Formats = None,
    width: Width = None,
    style: Style = None,
    to: Annotated[
        float | None, typer.Option(help="FLOPs up to which laws over compute are drawn.")
    ] = None,
    choices: Choices = None,
) -> None:
    """Draw every figure that a source allows, with the CSV of what it draws and its caption.

    Examples:

        parcae plot bundled:parcae-140m --out figures

        parcae plot points.csv --out figures --law chinchilla --to 1e24 --format pdf --width 6.75
    """
    from analysis.figures.drawing import Look
    from analysis.figures.gallery import gallery
    from analysis.report.study import Study

    laws = tuple(law or ())
    table = choices.table(source, *laws)
    more, decisions = _history(source)
    study = Study(table, laws, choices, more=more, decisions=decisions)
    found = gallery(study, tuple(only or ()), Look(width=width, style=style), to=to)
    for name, why in found.refusals.items():
        typer.echo(f"{name}: not drawn: {why}", err=True)
    for path in found.save(out, tuple(format or ("png",))):
        typer.echo(str(path))


def _history(source: str) -> tuple[dict[str, Callable], Decisions | None]:
    """The figure of a sweep's learning curves, where its trials have logged any, and what it has decided, if it
    is adaptive; nothing of any other source."""
    if not _is_sweep(source):
        return {}, None
    from analysis.figures import curves as curve_figures
    from parcae_core.errors import UserError
    from sweeps.history import curves_of, decisions_of
    from sweeps.store import open_sweep

    store, more = open_sweep(source), {}
    with suppress(UserError):  # nothing is logged yet: the laws have their say without
        more["curves"] = functools.partial(curve_figures.curves, curves_of(store))
    return more, decisions_of(store)


@fits
def curves(
    source: Source,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; without it none is drawn.")
    ] = None,
    x: Annotated[str, typer.Option(help="flops or tokens, of the figure's axis.")] = "flops",
    format: Formats = None,
    width: Width = None,
    style: Style = None,
    to: Annotated[float | None, typer.Option(help="FLOPs up to which the law is drawn.")] = None,
    json: Json = False,
    choices: Choices = None,
) -> None:
    """Learning curves: training loss, learning rate and stability over training, and the law of their envelope.

    Of a sweep's folder, also while it runs, or of a table with a row per run and step. The envelope is the lowest
    smoothed training loss of any run at each compute.

    Examples:

        parcae curves runs/demo --out figures

        parcae curves history.csv --columns run=Name,D=tokens,N=params,loss=train/loss --json
    """
    from analysis import curves as learning
    from analysis.errors import InputError
    from analysis.figures import curves as curve_figures
    from analysis.figures.drawing import Look, looking
    from analysis.figures.gallery import Gallery
    from analysis.laws import library

    axes = {"flops": "train_flops", "tokens": "n_tokens"}
    if x not in axes:
        raise InputError(f"--x {x}: it must be flops or tokens.")
    if _is_sweep(source):
        from sweeps.history import curves_of
        from sweeps.store import open_sweep

        found = curves_of(open_sweep(source))
    else:
        found = learning.of_table(choices.table(source))
    if axes[x] not in found.frame:
        raise InputError(f"--x {x}: {found.source} has no {axes[x]}; map it with --columns.")
    fitted = learning.fit_envelope(
        found, choices.changes.of(library.get("frontier")), **choices.fitting
    )
    typer.echo(fitted.result.to_json()) if json else echo(fitted.result.report())
    if out is not None:
        with looking(Look(width=width, style=style)):
            drawn = (
                curve_figures.curves(found, axes[x]),
                curve_figures.envelope(found, fitted, to=to),
            )
        for path in Gallery(drawn).save(out, tuple(format or ("png",))):
            typer.echo(str(path), err=json)
    if not fitted.result.valid:
        raise typer.Exit(1)


@fits
def report(
    source: Annotated[
        list[str], typer.Argument(help="One or more sources, told apart on the page.")
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    law: Laws = None,
    choices: Choices = None,
) -> None:
    """Write one self-contained HTML page on one or more sources; print a line per law and the path.

    Examples:

        parcae report bundled:parcae-140m runs/demo --out report.html
    """
    from analysis.report.html import write_report
    from sweeps.cli.parallel import each

    parts = each(functools.partial(_part, tuple(law or ()), choices), source)
    write_report(parts, out)
    for part in parts:
        for line in part.lines:
            echo(line)
    typer.echo(str(out))


def _part(laws: tuple[str, ...], choices: Choices, source: str) -> Part:
    """One source of a report; a process of its own has not registered what reads sweeps."""
    from analysis.report.html import Part
    from analysis.report.study import study
    from sweeps.tracking import reader

    reader.register()
    _register_sweeps()
    found = study(choices.table(source, *laws), laws, choices)
    found.more, found.decisions = _history(source)
    return Part.of(found)
