"""An adaptive sweep against the demo's own grid, both of real runs on its task, paired by seed.

    python -m benchmarks.adaptive_real --seed 0 --out runs/adaptive-real --cpus 2     again, until it says its rows
    python -m benchmarks.adaptive_real --seed 0 --replay                              in seconds, from the records
    python -m benchmarks.adaptive_real --seed 3 --grid runs/grid                      a seed that the records lack
    python -m benchmarks.adaptive_real --seed 0 --again        both, from the losses that are recorded, as estimated today

The grid is the demo's (`sweeps/specs/demo.yaml`) without its fixed-depth runs: its losses at three seeds lie in
`bundled:state-reveals`, those of another seed in the folder of a sweep (the same spec with that seed). The adaptive sweep (`sweeps/specs/adaptive.yaml`) chooses among the same budgets with all of the
demo's numbers of loops, at that seed alone, and may spend half the grid's FLOPs. What it believes before is of another
task, so nothing of the answer is in it. gamma_mu is the training law's, over the same budgets,
by the same estimate for both; the grid's by parabolas stands beside it. A replay chooses among the grid's own runs and
reads their losses, which a trial trained again has to the last digit. Rows go to benchmarks/results/adaptive_real.csv,
the runs that were trained to adaptive_real_runs.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis import api
from analysis.isoflop.parabolas import fit_recurrence
from analysis.table.load import Table, from_records
from benchmarks.common import RESULTS, append_rows, provenance
from sweeps.cli.sweep import load_plan
from sweeps.decisions import decisions, left_out_words, words
from sweeps.design.adaptive import left_out_data, planner_of
from sweeps.design.plan import Plan
from sweeps.records import records_of
from sweeps.runner.driver import Options, run
from sweeps.store import Store

GRID = "bundled:state-reveals"
SPECS = files("sweeps") / "specs"
RUN = ("seed", "which", "budget_flops", "mean_recurrence", "n_steps", "trial_id", "val_loss")
WINDOWS = {
    float(budget): [mu for mu in window if mu > 1]
    for budget, window in yaml.safe_load((SPECS / "demo.yaml").read_text())[
        "mean_recurrence"
    ].items()
}


def spec_of(seed: int, share: float) -> dict[str, Any]:
    """The shipped adaptive spec at one seed, its runs read out at their own number of loops."""
    spec = yaml.safe_load((SPECS / "adaptive.yaml").read_text())
    total = sum(budget * len(window) for budget, window in WINDOWS.items())
    own = {
        "name": f"adaptive-{seed}",
        "seeds": [seed],
        "total_flops": share * total,
        "evaluation": spec["evaluation"] | {"loops": [1]},
        "wandb": {"mode": "disabled"},
    }
    return spec | own


def grid_of(seed: int, source: str = GRID) -> Table:
    """The demo's looped runs of a seed, at their own number of loops."""
    table = api.load(source)
    rows = table.frame
    own = (rows.seed == seed) & (rows.n_loops == rows.mean_recurrence)
    for budget in rows.budget_flops.unique():
        away = ~rows.mean_recurrence.isin(WINDOWS.get(budget, []))
        own &= ~((rows.budget_flops == budget) & away)
    return table.keep(own, "not of the demo's grid at this seed")


def row(
    which: str, seed: int, table: Table, now: dict[str, Any] | None, valid: bool
) -> dict[str, Any]:
    """A line of the CSV; `now` is an estimate as design.jsonl has it."""
    numbers = {
        name: None if now is None else round(now[name], 4) for name in ("value", "low", "high")
    }
    return {
        "seed": seed,
        "which": which,
        "flops": float(table.frame.budget_flops.sum()),
        "trials": len(table.frame),
        "gamma_mu": numbers["value"],
        "low": numbers["low"],
        "high": numbers["high"],
        "valid": valid,
        "trial_seconds": round(float(table.frame.wall_s.sum()), 1),
    }


def recorded(plan: Plan, seed: int) -> dict[str, list[tuple[int, float]]]:
    """(row, loss) of the runs of a seed that were recorded, the grid's and the adaptive sweep's."""
    runs = pd.read_csv(RESULTS / "adaptive_real_runs.csv")
    runs = {which: rows for which, rows in runs[runs.seed == seed].groupby("which")}
    runs.setdefault("grid", grid_of(seed).frame)  # of seeds 0 to 2 they are bundled
    return {which: known(plan, runs[which]) for which in ("grid", "adaptive")}


def again(plan: Plan, seed: int) -> list[dict[str, Any]]:
    """The newest lines of the CSV of a seed, with the estimates of today."""
    lines, planner = pd.read_csv(RESULTS / "adaptive_real.csv"), planner_of(plan)
    out = []
    for which, done in recorded(plan, seed).items():
        newest = lines[(lines.seed == seed) & (lines.which == which)].iloc[-1].to_dict()
        now = planner.estimate(done)
        numbers = {"gamma_mu": now.value, "low": now.low, "high": now.high}
        out.append(newest | {name: round(number, 4) for name, number in numbers.items()})
    return out


def known(plan: Plan, frame: pd.DataFrame) -> list[tuple[int, float]]:
    """(row, loss) of runs as a planner takes them."""
    places = {(t.budget_flops, t.mean_recurrence): i for i, t in enumerate(plan.trials)}
    columns = (frame.budget_flops, frame.mean_recurrence, frame.val_loss)
    return [(places[c, mu], loss) for c, mu, loss in zip(*columns, strict=True)]


def by_law(which: str, seed: int, plan: Plan, table: Table) -> dict[str, Any]:
    """gamma_mu by the training law, as an adaptive sweep takes it from any runs among its candidates."""
    planner, done = planner_of(plan), known(plan, table.frame)
    found = planner.estimate(done)
    for sentence in left_out_words({"left_out": left_out_data(planner, done)}):
        print(f"{which}: {sentence}")
    now = None
    if found is not None:
        now = {"value": found.value, "low": found.low, "high": found.high}
    return row(which, seed, table, now, api.fit_table(table, "training", interval="none").valid)


def by_parabolas(seed: int, table: Table) -> dict[str, Any]:
    """gamma_mu as `parcae fit --law recurrence` gives it."""
    result = fit_recurrence(table).result
    found = result["gamma_mu"]
    now = None
    if found.value is not None:
        now = {"value": found.value, "low": found.ci_low, "high": found.ci_high}
    return row("grid, parabolas", seed, table, now, result.valid)


def replayed(plan: Plan, table: Table) -> Table:
    """The rows of the grid that an adaptive sweep would have chosen one by one, with their losses."""
    frame = table.frame
    losses = dict(
        zip(
            zip(frame.budget_flops, frame.mean_recurrence, strict=True), frame.val_loss, strict=True
        )
    )
    trials = [t for t in plan.trials if (t.budget_flops, t.mean_recurrence) in losses]
    planner = planner_of(dataclasses.replace(plan, trials=tuple(trials)))
    done: list[tuple[int, float]] = []
    while new := planner.next(done, [], 1)[0]:
        [row] = [d.row for d in new]
        done.append((row, losses[trials[row].budget_flops, trials[row].mean_recurrence]))
    mine = {(trials[i].budget_flops, trials[i].mean_recurrence) for i, _ in done}
    chosen = [x in mine for x in zip(frame.budget_flops, frame.mean_recurrence, strict=True)]
    return table.keep(pd.Series(chosen, frame.index), "not chosen")


def trained(plan: Plan, store: Store, path: Path, cpus: int) -> Table:
    """The runs of the adaptive sweep, made here."""
    outcome = run(plan, store, path, options=Options(ray=False, cpus=cpus))
    table = records_of(store)
    if not outcome.complete or table is None:
        raise SystemExit("it has not ended: run it again, for the rest and for the rows")
    print(words(decisions(store.root)[-1]["estimate"]))
    runs = from_records(table, str(store.root))
    return runs.keep(runs.frame.n_loops == runs.frame.mean_recurrence, "read out elsewhere")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--grid", default=GRID, help="records or folder that hold the grid's runs")
    parser.add_argument("--share", type=float, default=0.5, help="of the looped grid's FLOPs")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptive-real"))
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--replay", action="store_true", help="train nothing")
    parser.add_argument("--again", action="store_true", help="estimate the recorded runs again")
    given = parser.parse_args()
    spec = spec_of(given.seed, given.share)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{spec['name']}.yaml"
    path.write_text(yaml.safe_dump(spec))
    plan = load_plan(path)
    if given.again:
        out = [line | provenance() for line in again(plan, given.seed)]
        print(pd.DataFrame(out).to_string(index=False))
        append_rows("adaptive_real", out)
        return
    grid = grid_of(given.seed, given.grid)
    if given.replay:
        name, adaptive = "adaptive, replayed", replayed(plan, grid)
    else:
        store = Store(given.out, plan.name)
        name, adaptive = "adaptive", trained(plan, store, path, given.cpus)
    out = [
        by_law("grid", given.seed, plan, grid),
        by_parabolas(given.seed, grid),
        by_law(name, given.seed, plan, adaptive),
    ]
    print(pd.DataFrame(out).to_string(index=False))
    kept = (
        out[-1:] if given.grid == GRID and not given.replay else out
    )  # a replay brought the grid's
    append_rows("adaptive_real", [line | provenance() for line in kept])
    runs = [] if given.replay else [adaptive.frame.assign(which=name)]
    if given.grid != GRID:  # its losses lie nowhere else
        runs.append(grid.frame.assign(which="grid"))
    for frame in runs:
        append_rows(
            "adaptive_real_runs",
            [run | provenance() for run in frame[list(RUN)].to_dict("records")],
        )


if __name__ == "__main__":
    main()
