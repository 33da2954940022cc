"""`parcae submit|logs|stop`: a sweep whose driver lives on a Ray cluster, through Ray Jobs.

The command line imports this module at its start, so the verbs import Ray's client themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parcae_core.errors import UserError

_ADDRESS = typer.Option(help="The cluster's dashboard: http://host:8265.")
_NAME = typer.Argument(help="A sweep's name; its newest job is meant.", metavar="SWEEP")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (submit, logs, stop):
        app.command(name=verb.__name__)(verb)


def submit(
    spec: Annotated[Path, typer.Argument(help="A spec file below the current folder.")],
    address: Annotated[str, _ADDRESS],
    out: Annotated[
        str, typer.Option("--out", help="The folder for sweeps, as the cluster's nodes see it.")
    ],
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is queued.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="As for `parcae run`.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="As for `parcae run`.")] = False,
) -> None:
    """Run a sweep on a Ray cluster: sends the current folder, starts the driver there, shows its log.

    The driver then no longer needs this machine. Submitting again is safe: it goes on where the last
    job stopped. Where the cluster asks for a token, set RAY_AUTH_TOKEN_PATH.

    Examples:

        ray dashboard cluster.yaml &

        parcae submit sweeps/specs/demo.yaml --address http://127.0.0.1:8265 --out /mnt/sweep/runs

        parcae stop demo --address http://127.0.0.1:8265
    """
    from sweeps.design.spec import load_spec
    from sweeps.runner import jobs

    name = load_spec(spec).name  # a mistake in it is found here and not on the cluster
    here = Path.cwd()
    if not spec.resolve().is_relative_to(here):
        raise UserError(
            f"{spec}: lies outside {here}, which is what is sent to the cluster; change to a folder "
            "above it or copy it here."
        )
    options = [f"--{n}" for n, on in (("extend", extend), ("smoke", smoke)) if on]
    with jobs.connected(address) as client:
        job = jobs.submit(client, name, spec.resolve().relative_to(here), out, options)
        typer.echo(job)
        if detach:
            return
        jobs.follow(client, job)
        typer.echo(jobs.line_of(client, job, message=False))
        code = jobs.exit_code(client, job)
    if code:
        raise typer.Exit(code)


def logs(
    sweep: Annotated[str, _NAME],
    address: Annotated[str, _ADDRESS],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """What the driver of a submitted sweep printed.

    Examples:

        parcae logs demo --address http://127.0.0.1:8265 --follow
    """
    from sweeps.runner import jobs

    with jobs.connected(address) as client:
        job = jobs.newest(client, sweep)
        if follow:
            jobs.follow(client, job)
        else:
            typer.echo(client.get_job_logs(job), nl=False)


def stop(sweep: Annotated[str, _NAME], address: Annotated[str, _ADDRESS]) -> None:
    """Stop a submitted sweep: its trials write a checkpoint, and `parcae submit` goes on from there.

    Examples:

        parcae stop demo --address http://127.0.0.1:8265
    """
    from sweeps.runner import jobs

    with jobs.connected(address) as client:
        job = jobs.newest(client, sweep)
        client.stop_job(job)
        typer.echo(jobs.line_of(client, job, message=False))
