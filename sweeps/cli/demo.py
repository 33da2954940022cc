"""`parcae demo`: the published points refitted, then a law from this machine, one report."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.tables.columns import Column, console_for_people, echo, print_table
from sweeps.waiting import say

if TYPE_CHECKING:
    from analysis.fitting.result import Param
    from analysis.report.study import Study

PUBLISHED = "bundled:parcae-140m"
ON_TEXT = "bundled:nano-isoflop"


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
    tell(published, here)
    typer.echo(f"\nReport: {report}")
    if not outcome.complete:
        finish(outcome, store, again="parcae demo")


def tell(published: Study, here: Study) -> None:
    """Print what the demonstration found, in tables that fit 80 columns."""
    from analysis import known
    from analysis.table.load import load
    from sweeps.design.plan import short

    console = console_for_people()
    laws = {"paper's figure, 140M parameters": published, "this machine, generated text": here}
    fits = {of: study.recurrence.result for of, study in laws.items() if study.recurrence}
    exponents = [{p.name: p for p in fit.params} for fit in fits.values()]
    typer.echo()
    print_table(
        console,
        "Exponents of the compute budget, with 95 % intervals",
        [
            Column("law of", list(fits), left=True),
            *(
                Column(f"{of}: {name}", [interval(p[name]) for p in exponents])
                for of, name in (("loops", "gamma_mu"), ("tokens", "gamma_D"))
            ),
        ],
    )
    for of, fit in fits.items():
        if not fit.valid:
            echo(f"NOT VALID, {of}: {fit.problems[0]}")
    if here.test_time is not None:
        echo(f"\n{here.test_time.summary()}")
    rows = known.equal_flops(here.table)
    typer.echo()
    print_table(
        console,
        "Loops against fixed depth at equal FLOPs, nats per token; "
        f"known floor {here.table.frame.loss_floor.iloc[0]:.4f}",
        [
            Column("FLOPs", [short(row.budget_flops) for row in rows]),
            Column("fixed depth", [f"{row.fixed_loss:.4f}" for row in rows]),
            Column("best loops", [f"{row.looped_loss:.4f}" for row in rows]),
            Column("at mu", [f"{row.mean_recurrence:g}" for row in rows]),
            Column("gained", [f"{row.gain:+.4f}" for row in rows]),
            Column(
                "of the way to the floor",
                ["" if row.share is None else f"{row.share:.0%}" for row in rows],
            ),
        ],
    )
    text = known.equal_flops(load(ON_TEXT))
    worse = sum(row.gain < 0 for row in text)
    echo(
        "\nOf this task: its rule is learned at once, then each loop reaches one action further, so the "
        "best number of loops is what a budget affords and its exponent lies near 1.\n"
        f"Of language: on Python's standard library fixed depth wins at {worse} of {len(text)} budgets for "
        "models this small (bundled records); the paper's 140M models gain, and their exponent is 0.40."
    )


def interval(param: Param) -> str:
    """0.396 [0.364, 0.427]"""
    if param.value is None:
        return "none"
    low, high = ("?" if v is None else f"{v:.3g}" for v in (param.ci_low, param.ci_high))
    return f"{param.value:.3g} [{low}, {high}]"
