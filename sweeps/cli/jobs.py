"""`parcae submit|logs|stop`: a sweep whose driver lives on a Ray cluster, through Ray Jobs; `parcae cluster check`.

The command line imports this module at its start, so the verbs import Ray's client themselves.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parcae_core.errors import UserError
from sweeps.cli.sweep import CHECKPOINT_EVERY, LOST_WORKERS, NODE_CPUS, NODE_GPUS, SET, largest_node
from sweeps.cli.tables.columns import AsJson
from sweeps.storage.objects import is_url
from sweeps.waiting import say

if TYPE_CHECKING:
    from sweeps.runner.cluster.check import Report
    from sweeps.runner.cluster.package import Package

WIDTH = 80
_ADDRESS = typer.Option(help="The cluster's dashboard: http://host:8265.")
EXCLUDE = typer.Option(help="Send no file of this pattern, as in .gitignore.")
ENV = typer.Option(
    help="A variable to send: NAME, NAME=VALUE or 'WANDB_*'. Ray shows it to all who may use the "
    "cluster."
)
_NAME = typer.Argument(help="A sweep's name; its newest job is meant.", metavar="SWEEP")

cluster = typer.Typer(help="Questions to a running Ray cluster.", no_args_is_help=True)
cluster.callback()(lambda: None)  # or Typer would make `check` the whole command


def submit(
    spec: Annotated[Path, typer.Argument(help="A spec file below the current folder.")],
    address: Annotated[str, _ADDRESS],
    out: Annotated[str, typer.Option(help="The folder for sweeps, as the cluster's nodes see it.")],
    changes: Annotated[list[str] | None, SET] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is queued.")] = False,
    extend: Annotated[bool, typer.Option("--extend", help="As for `parcae run`.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="As for `parcae run`.")] = False,
    lost_workers: Annotated[int, LOST_WORKERS] = 3,
    checkpoint_every: Annotated[float, CHECKPOINT_EVERY] = 120.0,
    node_cpus: Annotated[float | None, NODE_CPUS] = None,
    node_gpus: Annotated[float, NODE_GPUS] = 0,
    exclude: Annotated[list[str] | None, EXCLUDE] = None,
    env: Annotated[list[str] | None, ENV] = None,
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
    from sweeps.runner.cluster import jobs

    _require_shared(out)
    # a mistake in it is found here and not on the cluster
    name = load_spec(spec, changes or ()).name
    here = Path.cwd()
    if not spec.resolve().is_relative_to(here):
        raise UserError(
            f"{spec}: lies outside {here}, which is what is sent to the cluster; change to a folder "
            "above it or copy it here."
        )
    inside = spec.resolve().relative_to(here).as_posix()
    package, variables = sendable(here, exclude, env)
    if inside not in package.files:
        raise UserError(
            f"{spec}: is not sent, since .gitignore, .rayignore or a pattern leaves it out; move it "
            "or change the pattern."
        )
    options = [f"--{n}" for n, on in (("extend", extend), ("smoke", smoke)) if on]
    options += [f"--lost-workers={lost_workers}", f"--checkpoint-every={checkpoint_every:g}"]
    if (node := largest_node(node_cpus, node_gpus)) is not None:
        options += [f"--node-cpus={node['CPU']:g}", f"--node-gpus={node['GPU']:g}"]
    options += [word for change in changes or () for word in ("--set", change)]
    command = ["run", inside, "--out", out, "--address", "auto", *options]
    with jobs.connected(address) as client:
        job = jobs.submit(client, name, command, package, variables)
        typer.echo(job)
        if detach:
            return
        jobs.follow(client, job)
        typer.echo(jobs.line_of(client, job, message=False))
        code = jobs.exit_code(client, job)
    if code:
        raise typer.Exit(code)


def _require_shared(out: str) -> None:
    """Refuse what the job would make in Ray's copy of this folder: no other node sees it, and Ray removes it.

    Raises:
        UserError: if it is neither an absolute path nor a URL.
    """
    if not (out.startswith(("/", "~")) or is_url(out)):
        raise UserError(
            f"--out {out}: would lie in the job's temporary folder; give a folder that every node sees, like "
            "/mnt/sweep/runs, or a URL, like s3://bucket/runs."
        )


def sendable(
    folder: Path, exclude: list[str] | None, env: list[str] | None
) -> tuple[Package, dict[str, str]]:
    """What a job takes along, said on stderr.

    Raises:
        UserError: if it is too large, or names a variable that is not set.
    """
    from sweeps.runner.cluster.package import package_of, variables

    package, sent = package_of(folder, exclude or ()), variables(env or (), os.environ)
    package.require_sendable()
    say(package.sentence())
    say(f"commit: {next(iter(package.commit.values()), 'of the code that the cluster has')}")
    if sent:
        say(f"variables sent: {', '.join(sorted(sent))}")
    return package, sent


def logs(
    sweep: Annotated[str, _NAME],
    address: Annotated[str, _ADDRESS],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """What the driver of a submitted sweep printed.

    Examples:

        parcae logs demo --address http://127.0.0.1:8265 --follow
    """
    from sweeps.runner.cluster import jobs

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
    from sweeps.runner.cluster import jobs

    with jobs.connected(address) as client:
        job = jobs.newest(client, sweep)
        client.stop_job(job)
        typer.echo(jobs.line_of(client, job, message=False))


@cluster.command()
def check(
    address: Annotated[
        str, typer.Option(help="auto or host:port on the cluster; http://host:8265 from elsewhere.")
    ],
    out: Annotated[
        str | None, typer.Option(help="The place for sweeps: written and read by each node.")
    ] = None,
    as_json: AsJson = False,
    exclude: Annotated[list[str] | None, EXCLUDE] = None,
    env: Annotated[list[str] | None, ENV] = None,
) -> None:
    """Versions, GPUs and storage of every node, and what differs. Takes less than a minute.

    Exit code 0 when nothing differs, 1 with a sentence for each difference. Through a dashboard it
    sends the current folder, as `parcae submit` does.

    Examples:

        parcae cluster check --address auto --out /mnt/sweep/runs

        parcae cluster check --address http://127.0.0.1:8265 --out s3://bucket/runs
    """
    if address.startswith(("http://", "https://")):
        report = _through_a_job(address, out, exclude, env)
    else:
        from sweeps.runner.cluster.check import check as ask
        from sweeps.runner.cluster.connect import ray_cluster

        with ray_cluster(address):
            report = ask(out)
    if as_json:
        typer.echo(report.to_json())
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


def _through_a_job(
    address: str, out: str | None, exclude: list[str] | None, env: list[str] | None
) -> Report:
    from sweeps.runner.cluster import jobs
    from sweeps.runner.cluster.check import Report

    if out is not None:
        _require_shared(out)
    package, variables = sendable(Path.cwd(), exclude, env)
    command = ["cluster", "check", "--address", "auto", "--json"]
    command += [] if out is None else ["--out", out]
    with jobs.connected(address) as client:
        job = jobs.submit(client, "cluster-check", command, package, variables)
        jobs.wait(client, job)
        said = client.get_job_logs(job).splitlines()
        found = [line for line in said if line.startswith('{"nodes"')]
        if not found:
            raise UserError(f"{jobs.line_of(client, job)}: {' '.join(said[-3:])[-500:]}")
    return Report.from_json(found[-1])


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("node", "CPU", "Python", "Ray", "torch", "code", "GPU", "storage"):
        table.add_column(column, overflow="fold")
    for node in report.nodes:
        versions = [node.versions.get(n) or "-" for n in ("python", "ray", "torch", "code")]
        gpus = f"{len(node.devices)} {node.devices[0].split(',')[0]}" if node.devices else "-"
        storage = node.storage if node.storage in ("ok", "not asked") else "fails"
        table.add_row(node.name, f"{node.cpus:g}", *versions, gpus, storage)
    console = Console(width=WIDTH, highlight=False)
    console.print(table)
    for problem in report.problems:
        console.print(problem, markup=False, soft_wrap=True)
    if not report.problems:
        console.print(f"{len(report.nodes)} nodes agree, asked in {report.seconds:.1f} s")
