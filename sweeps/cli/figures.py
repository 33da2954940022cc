"""The verbs of figures: plot, curves, report.

As in the room of laws, results go to stdout and progress to stderr.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps import source as sweep_source
from sweeps.cli.options import Laws, Source, fits
from sweeps.cli.tables.columns import AsJson, echo
from sweeps.source import history, is_sweep

if TYPE_CHECKING:
    from analysis.choices import Choices
    from analysis.report.html import Part


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
    more, decisions = history(source)
    study = Study(table, laws, choices, more=more, decisions=decisions)
    found = gallery(study, tuple(only or ()), Look(width=width, style=style), to=to)
    for name, why in found.refusals.items():
        typer.echo(f"{name}: not drawn: {why}", err=True)
    for path in found.save(out, tuple(format or ("png",))):
        typer.echo(str(path))


@fits
def curves(
    source: Source,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; without it none is drawn.")
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(help="flops or tokens, of the figure's axis; without it, flops where known."),
    ] = None,
    format: Formats = None,
    width: Width = None,
    style: Style = None,
    to: Annotated[float | None, typer.Option(help="FLOPs up to which the law is drawn.")] = None,
    as_json: AsJson = False,
    choices: Choices = None,
) -> None:
    """Learning curves: training loss, learning rate and stability over training, and the law of their envelope.

    Of a sweep's folder, also while it runs, or of a table with a row per run and step. The envelope is the lowest
    smoothed training loss of any run at each compute; of tokens alone there are curves without it.

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
    if x is not None and x not in axes:
        raise InputError(f"--x {x}: it must be flops or tokens.")
    if is_sweep(source):
        from sweeps.history import curves_of
        from sweeps.store import open_sweep

        found = curves_of(open_sweep(source))
    else:
        found = learning.of_table(choices.table(source))
    over = axes[x] if x is not None else found.axis
    if over not in found.frame:
        raise InputError(f"--x {x}: {found.source} has no {over}; map it with --columns.")
    fitted = None
    if out is None or as_json or found.axis == "train_flops":
        fitted = learning.fit_envelope(
            found, choices.changes.of(library.get("frontier")), **choices.fitting
        )
        typer.echo(fitted.result.to_json()) if as_json else echo(fitted.result.report())
    else:
        typer.echo(f"{found.source}: {learning.NO_ENVELOPE}", err=True)
    if out is not None:
        with looking(Look(width=width, style=style)):
            drawn = [curve_figures.curves(found, over)]
            if fitted is not None:
                drawn.append(curve_figures.envelope(found, fitted, to=to))
        for path in Gallery(tuple(drawn)).save(out, tuple(format or ("png",))):
            typer.echo(str(path), err=as_json)
    if fitted is not None and not fitted.result.valid:
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
    from sweeps.parallel import each

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
    sweep_source.register()
    found = study(choices.table(source, *laws), laws, choices)
    found.more, found.decisions = history(source)
    return Part.of(found)
