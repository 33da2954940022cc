"""What a schedule that lets budgets share a trunk does to the losses, paired with the published one.

    python -m benchmarks.trunks --task state-reveals --out runs/trunk-study --cpus 2
    python -m benchmarks.trunks --task text --out runs/trunk-study --cpus 2     again, until every trial has ended

The same seeds, text and depths under the published schedule (weight decay falls over the whole run) and under those that
share trunks (it falls in the cool-down), with a cool-down of half the steps or of a fifth. A branch is its separate run
bit for bit (tests/sweeps/test_branches.py), so what is left to measure is the schedule. On the demo's task the published
arm lies in `bundled:state-reveals`; a trial trained again has its losses to the last digit. On text both are trained.
Rows go to benchmarks/results/trunks.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import t as student

from analysis import api
from benchmarks.common import append_rows, provenance
from sweeps.cli.sweep import load_plan
from sweeps.records import records_of
from sweeps.runner.driver import Options, run
from sweeps.store import Store

RATE = {"lr": 1.6e-2}
HALF: dict[str, Any] = {"optim": RATE, "trunks": True}
FIFTH: dict[str, Any] = {"optim": RATE | {"cooldown_share": 0.2}, "trunks": True}
NANO: dict[str, Any] = {
    "design": "isoflop",
    "preset": "nano",
    "batch_sequences": 8,
    "wandb": {"mode": "disabled"},
}
# By task: what its trials share, and the schedules to train
TASKS: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "state-reveals": (
        NANO
        | {
            # Settings whose published losses are bundled
            "budgets_flops": [0.8e11, 1.2e11, 1.8e11],
            "mean_recurrence": {
                "0.8e11": [3, 4, 6, 8],
                "1.2e11": [3, 4, 6, 8],
                "1.8e11": [4, 6, 8],
            },
            "context": 64,
            "data": {
                "corpus": {"name": "state-reveals", "states": 4, "actions": 2, "longest_gap": 32}
            },
            "evaluation": {"n_sequences": 512},
            "seeds": [0, 1, 2],
        },
        {"trunk-half": HALF, "trunk-fifth": FIFTH},
    ),
    "text": (
        NANO
        | {
            "budgets_flops": [1e11, 2e11, 4e11],
            "mean_recurrence": [1, 4],
            "context": 128,
            "data": {"corpus": "python-stdlib", "tokenizer": "bytes"},
            "evaluation": {"n_sequences": 256},
            "seeds": [0, 1, 2],
        },
        {"published": {"optim": RATE}, "trunk-half": HALF},
    ),
}
PAIR = ["budget_flops", "mean_recurrence", "seed"]


def main() -> None:
    """Run what is missing; write rows and print the differences once nothing is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cpus", type=int, default=1)
    args = parser.parse_args()
    common, schedules = TASKS[args.task]
    args.out.mkdir(parents=True, exist_ok=True)
    tables, left = {}, 0
    for name, changes in schedules.items():
        spec = args.out / f"{args.task}-{name}.yaml"
        spec.write_text(yaml.safe_dump(common | changes | {"name": spec.stem}))
        plan, store = load_plan(spec), Store(args.out, spec.stem)
        outcome = run(plan, store, spec, options=Options(ray=False, cpus=args.cpus))
        left += len(plan.trials) - outcome.count("done")
        if (table := records_of(store)) is not None:
            tables[name] = runs_of(table)
        if outcome.stopped:
            break
    if "published" not in schedules:
        tables["published"] = runs_of(api.load("bundled:state-reveals").frame)
    published = tables.pop("published")
    for name, table in tables.items():
        print(difference(published, table, name))
    if left:
        raise SystemExit(f"{left} trials are left: run it again, for the rest and for the rows")
    append_rows(
        "trunks",
        [row for name, table in tables.items() for row in rows(args.task, name, published, table)],
    )


def runs_of(records: pd.DataFrame) -> pd.DataFrame:
    """One row per trial, read out at its own number of loops."""
    own = records[(records.n_loops == records.mean_recurrence) & (records.status == "done")]
    shared = own.get("shared_steps", pd.Series(0, index=own.index)).fillna(0)
    return own.assign(made_flops_paper=own.train_flops_paper * (1 - shared / own.n_steps))


def paired(published: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The trials that both have; the other schedule's columns end in _other."""
    pairs = other.merge(published, on=PAIR, suffixes=("_other", ""), validate="one_to_one")
    return pairs.assign(more=pairs.val_loss_other - pairs.val_loss)


def rows(
    task: str, schedule: str, published: pd.DataFrame, table: pd.DataFrame
) -> list[dict[str, Any]]:
    """The CSV's rows of a schedule."""
    pairs = paired(published, table)
    kept = pairs[PAIR].assign(
        published_loss=pairs.val_loss,
        val_loss=pairs.val_loss_other,
        train_flops_paper=pairs.train_flops_paper_other,
        made_flops_paper=pairs.made_flops_paper_other,
    )
    return [
        {"task": task, "schedule": schedule} | row | provenance() for row in kept.to_dict("records")
    ]


def difference(published: pd.DataFrame, other: pd.DataFrame, name: str) -> str:
    """Mean difference of the pairs' losses, its 95 % interval with seeds as the units, and the FLOPs."""
    pairs = paired(published, other)
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
