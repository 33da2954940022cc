"""`parcae status|retry|collect|sync`: verbs on a sweep's folder. Light to import; they import what they need."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from parcae_core.errors import UserError
from sweeps.cli.sweep import OUT, TRIALS, sweeps_here
from sweeps.cli.tables.columns import AsJson, console_for_people
from sweeps.waiting import say

_SWEEP = typer.Argument(
    help="A sweep's name under --out, its folder or URL, or its spec.", autocompletion=sweeps_here
)


def status(
    sweep: Annotated[str, _SWEEP],
    trials: Annotated[bool, TRIALS] = False,
    as_json: AsJson = False,
    out: Annotated[str, OUT] = "runs",
    address: Annotated[
        str | None, typer.Option(help="Of a cluster: the state of the submitted job instead.")
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=86_400.0,
            help="Show it again after so many seconds, until nothing is left.",
        ),
    ] = None,
) -> None:
    """How far a sweep is, a row per budget, read from its folder; also while it runs.

    Once enough looped trials have ended it says what they make of gamma_mu, or of an adaptive sweep's target.

    Exit code 1 when a trial or a result is damaged: it is named.

    Examples:

        parcae status demo

        parcae status runs/demo --trials

        parcae status demo --watch 10

        parcae status demo --address http://127.0.0.1:8265
    """
    if address is not None:
        from sweeps.runner.cluster import jobs

        with jobs.connected(address) as client:
            typer.echo(jobs.line_of(client, jobs.newest(client, sweep)))
        return
    from sweeps.cli.tables.status import goes_on, print_status, status_data
    from sweeps.store import open_sweep

    while True:
        store = open_sweep(sweep, out)
        data = status_data(store)
        if as_json:
            typer.echo(json.dumps(data, indent=1))
        else:
            print_status(data, every_trial=trials)
        if watch is None or not goes_on(data):
            break
        time.sleep(watch)
        console_for_people().clear()  # a terminal; into a pipe one look follows the other
    _exit_if_damaged(store.where, data["damaged"])


def retry(
    sweep: Annotated[str, _SWEEP],
    trial: Annotated[list[str] | None, typer.Argument(help="Trial ids; all failed ones.")] = None,
    out: Annotated[str, OUT] = "runs",
) -> None:
    """Let failed trials be planned again; then `parcae run` takes them up from their checkpoints.

    Examples:

        parcae retry demo

        parcae retry runs/demo 0f3a52c1b77e
    """
    from sweeps.store import open_sweep

    store = open_sweep(sweep, out)
    failed = [t.trial_id for t in store.stored_trials() if store.state(t).state == "failed"]
    for trial_id in trial or []:
        if trial_id not in failed:
            raise UserError(
                f"{store.where}: trial {trial_id} has not failed; "
                f"failed: {', '.join(failed) or 'none'}."
            )
    for trial_id in trial or failed:
        store.forget_failure(trial_id)
        typer.echo(trial_id)
    say(f"{len(trial or failed)} trials are planned again; start them with `parcae run`.")


def collect(
    sweep: Annotated[str, _SWEEP],
    out: Annotated[str, OUT] = "runs",
) -> None:
    """Write the sweep's records.parquet from its trial folders; also while a sweep runs.

    Exit code 1 when a trial or a result is damaged: it is named, and the others are written.

    Examples:

        parcae collect demo

        parcae collect s3://bucket/runs/demo

        parcae fit $(parcae collect runs/demo) --law recurrence
    """
    from sweeps.records import collect as collect_records
    from sweeps.store import open_sweep

    store = open_sweep(sweep, out)
    path, problems = collect_records(store), store.problems()
    if path is None and not problems:
        raise UserError(f"{sweep}: no trial has ended yet; nothing to collect.")
    if path is not None:
        typer.echo(f"{store.where}/{path.name}")
    for trial_id, problem in problems.items():
        say(f"{trial_id}: left out: {problem}")
    _exit_if_damaged(store.where, problems)


def _exit_if_damaged(where: str, problems: dict[str, str]) -> None:
    if problems:
        say(
            f"{where}: {len(problems)} trials are damaged; `parcae run SPEC` writes a planned trial "
            "again and trains again what has no whole result."
        )
        raise typer.Exit(1)


def sync(
    sweep: Annotated[str, _SWEEP],
    out: Annotated[str, OUT] = "runs",
) -> None:
    """Send a sweep's offline W&B runs, and its own with figures and laws, to the server.

    What was sent is not sent again; a run that no worker lived to write is written first.

    Examples:

        parcae sync demo

        WANDB_BASE_URL=https://wandb.example.org parcae sync runs/demo
    """
    from sweeps.design.spec import load_spec
    from sweeps.store import open_sweep
    from sweeps.tracking.server import key_problem, target, unsynced
    from sweeps.tracking.server import sync as send
    from sweeps.tracking.sweep_run import pushed, write_missing

    store = open_sweep(sweep, out)
    if (problem := key_problem()) is not None:
        raise UserError(f"{store.where}: {problem}.")
    project = target(load_spec(store.root / "spec.yaml").wandb).project
    try:
        # else workers may be writing the same runs
        with store.storage.lock(), pushed(store):
            for problem in write_missing(store, project=project):
                say(problem)
    except UserError:
        say(f"{store.where}: a `parcae run` is at work here; what it has not written yet waits")
    runs = (n for n in store.storage.list() if "wandb" in n.split("/")[:2])
    store.storage.pull(store.root / n for n in runs)
    waiting = unsynced(store.root)
    for i, folder in enumerate(waiting):
        problem = send(folder)
        if problem is not None:
            say(f"{folder}: {problem}")
            say(
                f"{i} of {len(waiting)} runs sent; the rest wait for another "
                f"`parcae sync {store.quoted}`"
            )
            raise typer.Exit(1)
        store.storage.push(*folder.glob("*.wandb.synced"))
        typer.echo(folder.name.split("-", 3)[-1])
    say(f"{len(waiting)} runs sent")
