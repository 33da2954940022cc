"""What a schedule that lets budgets share a trunk does to the losses, paired with the published one.

    python -m benchmarks.trunks --out runs/trunk-study --cpus 2     again, until every trial has ended

Trials of the demo's task, three schedules, the same seeds, text and depths: the published one (weight
decay falls over the whole run), and two that share trunks (it falls in the cool-down), with a cool-down
of half the steps and of a fifth. A branch is its separate run bit for bit (tests/sweeps/test_branches.py),
so what is left to measure is the schedule. Rows go to benchmarks/results/trunks.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from benchmarks.common import append_rows, provenance
from sweeps.cli.sweep import load_plan
from sweeps.records import records_of
from sweeps.runner.driver import Options, run
from sweeps.store import Store

COMMON: dict[str, Any] = {
    "design": "isoflop",
    "budgets_flops": [0.8e11, 1.2e11, 1.8e11],
    "mean_recurrence": [3, 4, 6, 8, 12],
    "preset": "nano",
    "context": 64,
    "batch_sequences": 8,
    "data": {"corpus": {"name": "state-reveals", "states": 4, "actions": 2, "longest_gap": 32}},
    "evaluation": {"n_sequences": 512},
    "seeds": [0, 1, 2],
    "wandb": {"mode": "disabled"},
}
RATE = {"lr": 1.6e-2}
SCHEDULES: dict[str, dict[str, Any]] = {
    "published": {"optim": RATE},
    "trunk-half": {"optim": RATE, "trunks": True},
    "trunk-fifth": {"optim": RATE | {"cooldown_share": 0.2}, "trunks": True},
}
PAIR = ["budget_flops", "mean_recurrence", "seed"]


def main() -> None:
    """Run what is missing; write rows and print the differences once nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpus", type=int, default=1)
    args = parser.parse_args()
    tables, left = {}, 0
    for name, changes in SCHEDULES.items():
        args.out.mkdir(parents=True, exist_ok=True)
        spec = args.out / f"{name}.yaml"
        spec.write_text(yaml.safe_dump(COMMON | changes | {"name": name}))
        plan, store = load_plan(spec), Store(args.out, name)
        outcome = run(plan, store, spec, options=Options(ray=False, cpus=args.cpus))
        left += len(plan.trials) - outcome.count("done")
        if (table := records_of(store)) is not None:
            tables[name] = runs_of(table)
        if outcome.stopped:
            break
    for name in tables.keys() - {"published"}:
        print(difference(tables["published"], tables[name], name))
    if left:
        raise SystemExit(f"{left} trials are left: run it again, for the rest and for the rows")
    append_rows("trunks", [row for name, table in tables.items() for row in rows(name, table)])


def runs_of(records: pd.DataFrame) -> pd.DataFrame:
    """One row per trial, read out at its own number of loops."""
    own = records[(records.n_loops == records.mean_recurrence) & (records.status == "done")]
    shared = own.get("shared_steps", pd.Series(0, index=own.index)).fillna(0)
    return own.assign(made_flops_paper=own.train_flops_paper * (1 - shared / own.n_steps))


def rows(schedule: str, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The CSV's rows of a schedule."""
    columns = [*PAIR, "n_steps", "val_loss", "train_flops_paper", "made_flops_paper"]
    return [
        {"schedule": schedule} | row | provenance() for row in table[columns].to_dict("records")
    ]


def difference(published: pd.DataFrame, other: pd.DataFrame, name: str) -> str:
    """Mean difference of the pairs' losses, its 95 % interval with seeds as the units, and the FLOPs."""
    pairs = published.merge(other, on=PAIR, suffixes=("", "_other"), validate="one_to_one")
    pairs = pairs.assign(more=pairs.val_loss_other - pairs.val_loss)
    by_seed = pairs.groupby("seed").more.mean()
    half = student.ppf(0.975, len(by_seed) - 1) * by_seed.std() / np.sqrt(len(by_seed))
    alone = pairs.more.std() / np.sqrt(len(pairs)) * student.ppf(0.975, len(pairs) - 1)
    made = other.made_flops_paper.sum() / other.train_flops_paper.sum()
    return (
        f"{name}: loss {pairs.more.mean():+.4f} +- {half:.4f} nats against published ({len(by_seed)} seeds; "
        f"+- {alone:.4f} if all {len(pairs)} pairs were independent), lower in "
        f"{int((pairs.more < 0).sum())} of {len(pairs)}; {1 - made:.1%} fewer FLOPs made"
    )


if __name__ == "__main__":
    main()
