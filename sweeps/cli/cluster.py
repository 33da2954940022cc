"""`parcae cluster check`: whether a running Ray cluster can take a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.cli.columns import AsJson
from sweeps.cli.jobs import ENV, EXCLUDE, sendable

if TYPE_CHECKING:
    from sweeps.runner.cluster.check import Report

WIDTH = 80


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    verbs = typer.Typer(help="Questions to a running Ray cluster.", no_args_is_help=True)
    verbs.command(name="check")(check)
    verbs.callback()(lambda: None)  # or Typer would make `check` the whole command
    app.add_typer(verbs, name="cluster")


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
    from parcae_core.errors import UserError
    from sweeps.runner.cluster import jobs
    from sweeps.runner.cluster.check import Report

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
