"""`parcae submit|logs|stop`: a sweep whose driver lives on a Ray cluster, through Ray Jobs."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parcae_core.errors import UserError
from sweeps.cli.sweep import say

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ADDRESS = typer.Option(help="The cluster's dashboard: http://host:8265.")
_NAME = typer.Argument(help="A sweep's name; its newest job is meant.", metavar="SWEEP")

# Between SIGTERM and SIGKILL when a job is stopped: trials write a checkpoint in it. Ray's is 3 s.
STOP_GRACE_S = 120
AGENT_WAIT_S = 60
STATE_KEY = "parcae_sweep"


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
    exclude: Annotated[
        list[str] | None, typer.Option(help="Send no file of this pattern, as in .gitignore.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="A variable to send: NAME, NAME=VALUE or 'WANDB_*'. Ray shows it to all who may "
            "use the cluster."
        ),
    ] = None,
) -> None:
    """Run a sweep on a Ray cluster: sends the current folder, starts the driver there, shows its log.

    The driver then no longer needs this machine. Submitting again is safe: it goes on where the last
    job stopped. Where the cluster asks for a token, set RAY_AUTH_TOKEN_PATH. Runs, data and what
    looks like a secret stay here; no variable is sent unless --env names it.

    Examples:

        ray dashboard cluster.yaml &

        parcae submit sweeps/specs/demo.yaml --address http://127.0.0.1:8265 --out /mnt/sweep/runs

        parcae submit my.yaml --address ... --out ... --env 'WANDB_*' --exclude '*.ipynb'
    """
    from sweeps.design.spec import load_spec
    from sweeps.runner.jobs import commit_of, package_of, variables

    name = load_spec(spec).name  # a mistake in it is found here and not on the cluster
    here = Path.cwd()
    if not spec.resolve().is_relative_to(here):
        raise UserError(
            f"{spec}: lies outside {here}, which is what is sent to the cluster; change to a folder "
            "above it or copy it here."
        )
    inside = spec.resolve().relative_to(here)
    package = package_of(here, exclude or ())
    sent = variables(env or (), os.environ)
    if inside.as_posix() not in package.files:
        raise UserError(
            f"{spec}: is not sent, since .gitignore, .rayignore or a pattern leaves it out; move it "
            "or change the pattern."
        )
    package.require_sendable()
    commit = commit_of(package)
    options = [f"--{n}" for n, on in (("extend", extend), ("smoke", smoke)) if on]
    command = ["python", "-m", "sweeps.cli", "run", str(inside), "--out", out, "--address", "auto"]
    say(package.sentence())
    say(f"commit {next(iter(commit.values()))}" if commit else "commit: of the cluster's own copy")
    if sent:
        say(f"variables sent: {', '.join(sorted(sent))}")
    with _jobs(address) as client:
        job = _submit(
            client,
            entrypoint=shlex.join([*command, *options]),
            submission_id=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            runtime_env={
                "working_dir": str(here),
                "excludes": list(package.excludes),
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S)} | commit | sent,
            },
            metadata={STATE_KEY: name},
            entrypoint_num_cpus=0,
        )
        typer.echo(job)
        if not detach:
            _follow(client, job)
            _exit_as(client, job)


def logs(
    sweep: Annotated[str, _NAME],
    address: Annotated[str, _ADDRESS],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """What the driver of a submitted sweep printed.

    Examples:

        parcae logs demo --address http://127.0.0.1:8265 --follow
    """
    with _jobs(address) as client:
        job = _newest(client, sweep)
        if follow:
            _follow(client, job)
        else:
            typer.echo(client.get_job_logs(job), nl=False)


def stop(sweep: Annotated[str, _NAME], address: Annotated[str, _ADDRESS]) -> None:
    """Stop a submitted sweep: its trials write a checkpoint, and `parcae submit` goes on from there.

    Examples:

        parcae stop demo --address http://127.0.0.1:8265
    """
    with _jobs(address) as client:
        job = _newest(client, sweep)
        client.stop_job(job)
        typer.echo(f"{job}: {client.get_job_status(job).value.lower()}")


def job_line(sweep: str, address: str) -> str:
    """The state of a sweep's newest job, in a line."""
    with _jobs(address) as client:
        job = _newest(client, sweep)
        info = client.get_job_info(job)
        return f"{job}: {info.status.value.lower()}: {info.message or ''}".rstrip(": ")


@contextmanager
def _jobs(address: str) -> Iterator[JobSubmissionClient]:
    """A client; what goes wrong between here and there is one sentence."""
    import logging

    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # its upload notes
    try:
        yield JobSubmissionClient(address)
    except typer.Exit:  # itself a RuntimeError
        raise
    except (
        AuthenticationError,
        OSError,
        RuntimeError,
    ) as error:  # OSError: also what requests raises
        text = re.sub(r"\s+", " ", str(error)).strip(" .")
        raise UserError(
            f"--address {address}: {text[:300]}. Check the address, that `ray dashboard` is running, "
            "and, where the cluster asks for one, RAY_AUTH_TOKEN_PATH with RAY_AUTH_MODE=token."
        ) from error


def _submit(client: JobSubmissionClient, **job: Any) -> str:
    """`submit_job`, again while a head that has only just started, or is busy, gives no answer.

    The job has its name from us, so that a second request for it starts no second driver.
    """
    deadline = time.monotonic() + AGENT_WAIT_S
    while True:
        try:
            return client.submit_job(**job)
        except (OSError, RuntimeError) as error:
            if f"{job['submission_id']} already exists" in str(error):
                return job["submission_id"]  # the request came through, its answer did not
            unanswered = isinstance(error, OSError) or "No available agent" in str(error)
            if not unanswered or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _newest(client: JobSubmissionClient, sweep: str) -> str:
    jobs = [j for j in client.list_jobs() if (j.metadata or {}).get(STATE_KEY) == sweep]
    if not jobs:
        raise UserError(f"{sweep}: no job of that sweep on this cluster; start it: parcae submit.")
    return max(jobs, key=lambda j: j.start_time or 0).submission_id


def _follow(client: JobSubmissionClient, job: str) -> None:
    async def lines() -> None:
        async for text in client.tail_job_logs(job):
            typer.echo(text, nl=False, err=True)

    asyncio.run(lines())


def _exit_as(client: JobSubmissionClient, job: str) -> None:
    info: Any = client.get_job_info(job)
    typer.echo(f"{job}: {info.status.value.lower()}")
    if info.status.value != "SUCCEEDED":
        raise typer.Exit(info.driver_exit_code or 1)
