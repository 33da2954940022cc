"""`parcae plan` and `parcae run`. Light to import; verbs import what they need."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parcae_core.errors import UserError
from sweeps.cli.tables.columns import AsJson
from sweeps.waiting import say

if TYPE_CHECKING:
    from sweeps.design.plan import Plan
    from sweeps.runner.driver import Outcome
    from sweeps.store import Store


def sweeps_here(incomplete: str) -> list[str]:
    """Names of the sweeps here, for the shell's completion."""
    return [p.parent.name for p in sorted(Path("runs").glob(f"{incomplete}*/sweep.json"))]


def _specs(incomplete: str) -> list[str]:
    """Spec files and sweeps that begin so."""
    paths = (p for end in ("*.yaml", "*/") for p in sorted(Path().glob(f"{incomplete}{end}")))
    return [f"{p}/" if p.is_dir() else str(p) for p in paths] + sweeps_here(incomplete)


_SPEC = typer.Argument(
    help="A spec file (`parcae init` writes one), or the name or folder of a sweep.",
    metavar="SPEC",
    autocompletion=_specs,
)
SET = typer.Option(
    "--set", help="A key of the spec in another way, such as optim.lr=1e-2.", metavar="KEY=VALUE"
)
TRIALS = typer.Option("--trials", help="A row for every trial.")
OUT = typer.Option("--out", help="Where sweeps are: a folder, or a URL such as s3://bucket/runs.")
# of `submit` as well
LOST_WORKERS = typer.Option(min=0, help="Workers a trial may lose without a newer checkpoint.")
CHECKPOINT_EVERY = typer.Option(min=1.0, help="Seconds between checkpoints.")
NODE_CPUS = typer.Option(help="CPUs of the largest node that the cluster at --address may add.")
NODE_GPUS = typer.Option(help="GPUs of the largest node that the cluster at --address may add.")


def plan(
    spec: Annotated[Path, _SPEC],
    trials: Annotated[bool, TRIALS] = False,
    changes: Annotated[list[str] | None, SET] = None,
    as_json: AsJson = False,
    out: Annotated[str, OUT] = "runs",
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Of the cluster that the time is for.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="Of the cluster that the time is for.")] = 0,
    flops_per_s: Annotated[
        float | None, typer.Option(min=1.0, help="What one trial makes, by the exact rule.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="Of one GPU-hour.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Whose benchmark rows count, such as 'NVIDIA H100'; default: this one."),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(min=0.001, max=1.0, help="Of the device's peak, where nothing is measured."),
    ] = None,
    tokens: Annotated[
        float | None,
        typer.Option(min=1.0, help="Of the training text, where it is not counted yet."),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            help="Forecast the exponents' intervals from paper:140m, parameters (E=..,X=..) or records."
        ),
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="With --prior: of one run's log loss, like 0.002.")
    ] = None,
    at: Annotated[
        float | None, typer.Option(help="With --prior: FLOPs at which mu* is forecast.")
    ] = None,
) -> None:
    """What a spec trains: tokens, steps, FLOPs, memory, time, a row per budget. Touches nothing.

    A corpus that is not there yet, or too large to be read, is assumed to be as the spec says, and
    the plan says so. The time rests on --flops-per-s, else on trials of this sweep that are done, else on benchmark
    rows for the device and preset, else on --mfu; it says on which. Without any it is unknown.
    With --prior it says how tight gamma_mu, gamma_D and mu* will be before anything is spent.

    Examples:

        parcae plan sweeps/specs/demo.yaml

        parcae plan sweeps/specs/demo.yaml --json | jq '.trials | length'

        parcae plan my.yaml --set optim.lr=1e-2 --trials

        parcae plan sweeps/specs/paper-140m-isoflop.yaml --tokens 100e9 --flops-per-s 4e14 --price 2.5

        parcae plan my.yaml --cpus 64 --gpus 8 --flops-per-s 2e14 --price 2.5

        parcae plan my.yaml --gpus 8 --device "NVIDIA H100" --mfu 0.4

        parcae plan sweeps/specs/paper-140m-isoflop.yaml --prior paper:140m --at 1e20
    """
    from sweeps.cli.tables.plan import plan_data, print_plan
    from sweeps.design.benchmark_rates import with_measured_shares

    for name, value in (("--noise", noise), ("--at", at)):
        if prior is None and value is not None:
            raise UserError(f"plan: {name} says something about --prior, which is not given.")
    given = named(spec, out)
    loaded = load_plan(given.spec, changes or (), assume=True)
    planned, notes = with_measured_shares(loaded, device)
    if planned.spec.design == "adaptive":
        from sweeps.design.adaptive import planner_of
        from sweeps.design.forecasting import off_curve
        from sweeps.design.plan import short

        planner_of(loaded)  # refuses a prior that is none
        most = planned.spec.total_flops
        share = most / sum(t.budget_flops or 0 for t in planned.trials)
        notes = [
            *notes,
            f"these are candidates: {short(most)} FLOPs of them are run, chosen on the way ({share:.0%} of the "
            "FLOPs and of the time above)",
            *off_curve(planned.trials),
        ]
    store = given.store(planned)
    store.refresh()
    data = plan_data(
        planned,
        store,
        cpus=cpus,
        gpus=gpus,
        flops_per_s=flops_per_s,
        price_per_gpu_hour=price,
        device=device,
        mfu=mfu,
        tokens=tokens,
        notes=notes,
    )
    lines = []
    if prior is not None:
        from analysis.design.priors import read
        from sweeps.design.forecasting import forecast_data, forecast_lines

        data["forecast"] = forecast_data(planned, read(prior, noise), at)
        lines = forecast_lines(data["forecast"])
    if as_json:
        typer.echo(json.dumps(data, indent=1))
    else:
        print_plan(data, every_trial=trials)
        for line in lines:
            typer.echo(line)


def run(
    spec: Annotated[Path, _SPEC],
    changes: Annotated[list[str] | None, SET] = None,
    out: Annotated[str, OUT] = "runs",
    extend: Annotated[
        bool, typer.Option("--extend", help="Accept a changed spec: keep what is finished.")
    ] = False,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Cores to use on this machine; default: all.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster: auto, or host:port.")
    ] = None,
    node_cpus: Annotated[float | None, NODE_CPUS] = None,
    node_gpus: Annotated[float, NODE_GPUS] = 0,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Shrink the spec to a few tiny trials: a CPU minute.")
    ] = False,
    wandb: Annotated[
        Literal["offline", "online", "disabled"] | None,
        typer.Option(help="offline, online or disabled, in place of the spec's."),
    ] = None,
    lost_workers: Annotated[int, LOST_WORKERS] = 3,
    checkpoint_every: Annotated[float, CHECKPOINT_EVERY] = 120.0,
    no_ray: Annotated[
        bool, typer.Option("--no-ray", help="Plain processes on this machine; Ray is not needed.")
    ] = False,
) -> None:
    """Run every trial that has no result yet. Safe to repeat: it goes on where it stopped.

    Exit code 0 when every trial has a result (diverged is one), 1 when some failed or are left.

    Examples:

        parcae run sweeps/specs/demo.yaml

        parcae run sweeps/specs/demo.yaml --smoke --out /tmp/smoke

        parcae run pilot.yaml --no-ray --cpus 2 --set optim.lr=1e-2 --set name=pilot-lr

        parcae run my.yaml --address auto --out s3://bucket/runs
    """
    from sweeps.design.benchmark_rates import with_measured_shares
    from sweeps.runner.driver import Options
    from sweeps.runner.driver import run as run_plan

    if no_ray and address is not None:
        raise UserError("--no-ray runs on this machine, and --address names a cluster; give one.")
    if address is None and node_cpus is not None:
        raise UserError("--node-cpus is of a cluster's nodes; name the cluster with --address.")
    if address is not None and cpus is not None:
        raise UserError("--cpus is of this machine, and --address names a cluster; give one.")
    can_add = largest_node(node_cpus, node_gpus)
    given = named(spec, out)
    planned = load_plan(given.spec, changes or (), smoke=smoke)
    if address is None:  # nobody here knows the GPUs of a cluster elsewhere: the spec's shares hold
        planned, notes = with_measured_shares(planned)
        for note in notes:
            say(note)
    store = given.store(planned)
    outcome = run_plan(
        planned,
        store,
        given.spec,
        extend=extend,
        options=Options(
            cpus=cpus,
            address=address,
            can_add=can_add,
            wandb_mode=wandb,
            ray=not no_ray,
            lost_workers=lost_workers,
            checkpoint_every_s=checkpoint_every,
        ),
    )
    finish(outcome, store, again=shlex.join(["parcae", *sys.argv[1:]]))


def largest_node(cpus: float | None, gpus: float) -> dict[str, float] | None:
    """What --node-cpus and --node-gpus say of the nodes that a cluster may add.

    Raises:
        UserError: GPUs of a node whose CPUs nobody gave.
    """
    if cpus is None and gpus:
        raise UserError(f"--node-gpus {gpus:g}: a node has CPUs too; give --node-cpus beside it.")
    return None if cpus is None else {"CPU": cpus, "GPU": gpus}


@dataclass(frozen=True, slots=True)
class Named:
    """What SPEC stands for: a spec's file, and of a sweep that is named where it is."""

    spec: Path
    out: str
    folder: str = ""  # of a sweep, below `out`
    name: str = ""  # as that sweep was planned; a copy's folder may be called otherwise

    def store(self, plan: Plan) -> Store:
        """Where the plan's trials are: in the folder that was named, unless `--set` or `--smoke` made another sweep."""
        from sweeps.store import Store

        return Store(self.out, self.folder if plan.name == self.name else plan.name)


def named(given: Path, out: str = "runs") -> Named:
    """A spec's file; or a sweep by its folder, or by its name under `out`, with the spec that it keeps.

    Raises:
        UserError: a sweep that has lost its spec, or lies elsewhere than --out.
    """
    from sweeps.storage.files import read_json

    if given.is_file() or given.suffix in (".yaml", ".yml"):
        return Named(given, out)
    for folder, place in ((given, str(given.parent)), (Path(out) / given, out)):
        spec, planned = folder / "spec.yaml", folder / "sweep.json"
        if not spec.exists() and not planned.exists():
            continue
        if not spec.is_file():
            found = "is a folder" if spec.is_dir() else "is not there"
            raise UserError(f"{spec} {found}, and the sweep's spec was; give the spec's own file.")
        if out not in ("runs", place) and Path(out).resolve() != folder.resolve().parent:
            raise UserError(
                f"{given} is a sweep in {folder.resolve().parent}, and --out is {out}; leave --out away."
            )
        if folder.name in ("", ".."):
            place = str(folder.resolve().parent)
        return Named(spec, place, folder.resolve().name, (read_json(planned) or {}).get("name", ""))
    return Named(given, out)


def load_plan(
    spec: Path, changes: Sequence[str] = (), *, smoke: bool = False, assume: bool = False
) -> Plan:
    """Read, check and resolve a spec file.

    Args:
        changes: as `--set` gives them.
        assume: take a corpus that is not there for what the spec says of it.

    Raises:
        UserError: with every problem.
    """
    from sweeps.design.corpora import resolve_data
    from sweeps.design.plan import plan as make_plan
    from sweeps.design.spec import load_spec
    from sweeps.store import spec_folder

    loaded, where = load_spec(spec, changes), str(spec)
    data = resolve_data(loaded, where, assume=assume, folder=spec_folder(spec))
    planned = make_plan(loaded, data, where=where)
    planned = replace(planned, changes=tuple(changes))
    if smoke:
        from sweeps.design.smoke import shrink

        planned = shrink(planned)
    return planned


def finish(outcome: Outcome, store: Store, *, again: str) -> None:
    """Collect, sum up, and exit with 1 unless every trial has a result."""
    from sweeps.records import collect as collect_records

    path = collect_records(store)
    counts = {s: outcome.count(s) for s in ("done", "diverged", "stopped", "failed", "planned")}
    summary = ", ".join(f"{n} {s}" for s, n in counts.items() if n)
    say(f"{store.name}: {summary} of {len(outcome.states)} trials; {store.where}")
    if path is not None:
        typer.echo(f"{store.where}/{path.name}")
    if outcome.complete:
        return
    if counts["failed"]:
        say(
            f"The reasons: `parcae status {store.quoted}`. Once they are mended: "
            f"`parcae retry {store.quoted}`, then `{again}`."
        )
    if counts["planned"]:
        what = "stopped" if outcome.stopped else "not every trial could be run"
        say(f"{what}; go on with: {again}")
    raise typer.Exit(1)
