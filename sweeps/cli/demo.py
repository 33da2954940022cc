"""`parcae demo`: the published points refitted, then a law from this machine, one report."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.columns import echo
from sweeps.waiting import say

if TYPE_CHECKING:
    from analysis.report.study import Study

PUBLISHED = "bundled:parcae-140m"
ON_TEXT = "bundled:nano-isoflop"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The folder that holds sweeps.")] = Path("runs"),
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores to use on this machine; default: all.")
    ] = None,
) -> None:
    """Refit the paper's isoFLOP points, run a small sweep here, fit it, and report both.

    The sweep is of tiny models on generated text whose lowest loss is known, trained on this machine
    minutes ago. Safe to repeat; a finished sweep is kept.

    Examples:

        parcae demo

        parcae demo --out /tmp/demo --cpus 2
    """
    from analysis.report.html import write_report
    from analysis.report.study import load
    from sweeps.cli.sweep import finish, load_plan
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
    for line in told(published, here, store.root):
        echo(line)
    typer.echo(f"\nReport: {report}")
    if not outcome.complete:
        finish(outcome, store, again="parcae demo")


def told(published: Study, here: Study, folder: Path) -> list[str]:
    """What the demonstration says at its end, line by line."""
    from analysis import known
    from analysis.table.load import load

    text = known.equal_flops(load(ON_TEXT))
    worse = sum(row.gain < 0 for row in text)
    return [
        "\nPublished points (paper's figure, 140M parameters):",
        *(f"  {line}" for line in published.headlines()),
        f"\nThis machine's sweep ({folder}), generated text:",
        *(f"  {line}" for line in here.headlines()),
        "\nLoops against fixed depth at equal FLOPs, nats per token:",
        *(f"  {line}" for line in compared(here)),
        "\nOf this task: its rule is learned at once, then each loop reaches one action further, so the "
        "best number of loops is what a budget affords and its exponent lies near 1.",
        f"Of language: on Python's standard library fixed depth wins at {worse} of {len(text)} budgets for "
        "models this small (bundled records); the paper's 140M models gain, and their exponent is 0.40.",
    ]


def compared(study: Study) -> list[str]:
    """Fixed depth, the best looped model and the floor, a line for each budget that has both."""
    from analysis import known

    lines = []
    for row in known.equal_flops(study.table):
        gained = "" if row.share is None else f", {row.share:.0%} of the way to the floor"
        lines.append(
            f"{row.budget_flops:.2g} FLOPs: fixed depth {row.fixed_loss:.4f}, looped "
            f"{row.looped_loss:.4f} at mu = {row.mean_recurrence:g}: {row.gain:+.4f} gained{gained}"
        )
    floor = study.table.frame.loss_floor.iloc[0]
    return [*lines, f"floor, known in closed form: {floor:.4f}"]
