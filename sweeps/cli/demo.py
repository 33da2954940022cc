"""`parcae demo`: the published points refitted, then a real sweep on this machine, one report."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import typer

PUBLISHED = "bundled:parcae-140m"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="demo")(demo)


def demo(
    out: Annotated[Path, typer.Option("--out", help="The folder that holds sweeps.")] = Path(
        "runs"
    ),
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores to use on this machine; default: all.")
    ] = None,
) -> None:
    """Refit the paper's isoFLOP points, run a small sweep here, fit it, and report both.

    The two are told apart everywhere: the published points come from the paper's figure, the sweep
    from tiny models trained on this machine minutes ago. Safe to repeat; a finished sweep is kept.

    Examples:

        parcae demo

        parcae demo --out /tmp/demo --cpus 2
    """
    from analysis.report.html import write_report
    from analysis.report.study import load
    from sweeps.cli.sweep import finish, load_plan, say
    from sweeps.records import collect
    from sweeps.runner.driver import Options, run
    from sweeps.store import Store

    say("1/3  refitting the isoFLOP points read from the paper's figure (140M parameters)")
    published = load(PUBLISHED)
    with as_file(files("sweeps") / "specs" / "demo.yaml") as spec:
        planned = load_plan(spec)
        store = Store(out, planned.name)
        say(f"2/3  training {len(planned.trials)} tiny models on this machine, into {store.root}")
        outcome = run(planned, store, spec, options=Options(cpus=cpus))
    if outcome.stopped or collect(store) is None:
        finish(outcome, store, again="parcae demo")  # says why, and exits
    say("3/3  fitting this machine's sweep and writing the report")
    here = load(store.root)
    report = write_report([published, here], store.root / "report.html")
    typer.echo("\nPublished points (paper's figure, 140M parameters):")
    for line in published.headlines():
        typer.echo(f"  {line}")
    typer.echo(f"\nThis machine's sweep ({store.root}):")
    for line in here.headlines():
        typer.echo(f"  {line}")
    typer.echo(f"\nReport: {report}")
    if not outcome.complete:
        finish(outcome, store, again="parcae demo")
