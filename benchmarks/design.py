"""How well `parcae design --pool` chooses: R2 on a costly region after a share of a pool's cost.

    python -m benchmarks.design --data FOLDER                        # every task, 10 repeats
    python -m benchmarks.design --data FOLDER --tasks sparsity --laws product sum
    python -m benchmarks.design --summary                            # of the rows that are there

The yardstick is ScaleBench (arXiv:2604.22753; its tables are CC-BY-4.0 and not part of this project): rows of
`split` train are candidates, rows of `split` test the target; R2 clipped to [-1, 1], groups' predictions
concatenated, mean over laws and repeats. A repeat is a seed of every start. Runs are chosen by
`analysis.design.pool`; what is scored is its prediction from the chosen runs alone, from fresh starts: `r2` the
law with what it misses near them, `r2_law` the law alone (Huber, 1e-3, on log loss). data_constrained publishes no boxes; its law here is `repeated` of the registry, written out.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.choices import Changes
from analysis.design.pool import Options, Pool, choose, predict
from analysis.laws import formula
from analysis.laws.law import Law
from benchmarks.common import RESULTS, commit

_C, _A = "-5:5", "0.01:3"  # boxes of the logarithms of coefficients, and of exponents
_CROSS = "exp(c*log(P)*log(N_active))"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A table of the yardstick and what its authors fit to it."""

    cost: str
    shares: tuple[float, ...]
    laws: dict[str, tuple[str, str]]  # name -> formula, boxes
    published: tuple[float, ...]  # the best of their methods at each share


TASKS = {
    "farseer": Task(
        cost="6*N*D",
        shares=(0.01, 0.05, 0.10),
        published=(0.67, 0.88, 0.93),
        laws={
            "nine parameters": (
                "exp(s*N**q + S) + exp(B*N**b + Q)*D**-exp(A*N**a + E)",
                "E=1:6,s=-1:0.3,q=0.01:0.5,S=-1:1,B=10:1000,b=-0.6:-0.01,Q=-5:1,A=-5:1,a=0.001:0.25",
            )
        },
    ),
    "sparsity": Task(
        cost="6*N_dense*D1 + 6*N_active*D2",
        shares=(0.20, 0.35, 0.50),
        published=(0.31, 0.44, 0.53),
        laws={
            "product, crossed": (
                f"exp(d1)*P**-a*N_active**-b*{_CROSS} + exp(d3)",
                f"d1={_C},a={_A},b={_A},c=-1:1,d3={_C}",
            ),
            "product": (
                "exp(d1)*P**-a*N_active**-b + exp(d3)",
                f"d1={_C},a={_A},b={_A},d3={_C}",
            ),
            "sum, crossed": (
                f"exp(d1)*P**-a + exp(d2)*N_active**-b*{_CROSS} + exp(d3)",
                f"d1={_C},a={_A},d2={_C},b={_A},c=-1:1,d3={_C}",
            ),
            "sum": (
                "exp(d1)*P**-a + exp(d2)*N_active**-b + exp(d3)",
                f"d1={_C},a={_A},d2={_C},b={_A},d3={_C}",
            ),
        },
    ),
    "data_constrained": Task(
        cost="6*params*tokens",
        shares=(0.01, 0.05, 0.10),
        published=(0.73, 0.85, 0.86),
        laws={
            "repeated": (
                "E + A*params**-alpha + B*(min(unique_tokens, tokens) + min(unique_tokens, tokens)*R*"
                "(1 - exp(-max(tokens/unique_tokens - 1, 0)/R)))**-beta",
                f"R=0.1:1000,alpha={_A},beta={_A}",
            )
        },
    ),
}


def pools_of(folder: Path, name: str, law: str) -> list[Pool]:
    """One pool for each group of a task's table."""
    task = TASKS[name]
    frame = pd.read_csv(folder / f"{name}.csv")
    frame["cost"] = frame.eval(task.cost)
    pools = []
    for _, part in frame.groupby("group", sort=False):
        ours = _law(part, *task.laws[law])
        pools.append(
            Pool(
                law=ours,
                columns={c: part[c].to_numpy(float) for c in ours.columns},
                loss=part.loss.to_numpy(float),
                cost=part.cost.to_numpy(float),
                candidates=np.flatnonzero(part.split == "train"),
                target=np.flatnonzero(part.split == "test"),
            )
        )
    return pools


def _law(part: pd.DataFrame, text: str, boxes: str) -> Law:
    columns = {str(c): part[c].to_numpy(float) for c in part if c not in ("group", "split")}
    names = {c: c for c in columns if c not in ("loss", "cost")}
    return Changes(bound=boxes).of(formula.law(text, names, data=columns))


def r_squared(truth: np.ndarray, guess: np.ndarray) -> float:
    unexplained = np.square(truth - guess).sum() / np.square(truth - truth.mean()).sum()
    return float(np.clip(1 - unexplained, -1, 1))


@dataclass(frozen=True)
class Score:
    """One law, share and seed."""

    r2: float
    r2_law: float  # without what the law misses
    runs: int
    spent: float  # share of the pool's cost
    slowest_s: float  # processor time of the slowest choice


def score(pools: list[Pool], share: float, seed: int) -> Score:
    total = sum(p.cost[p.candidates].sum() for p in pools)
    chosen: list[list[int]] = [[] for _ in pools]
    spent, slowest, since = 0.0, 0.0, time.process_time()
    for choice in choose(pools, share * total, Options(seed=seed)):
        now = time.process_time()
        slowest, since = max(slowest, now - since), now
        chosen[choice.group].append(choice.row)
        spent += choice.cost
    guesses = [
        predict(p, np.array(c), Options(seed=seed)) for p, c in zip(pools, chosen, strict=True)
    ]
    truth = np.concatenate([p.loss[p.target] for p in pools])
    law, r2 = (r_squared(truth, np.concatenate(g)) for g in zip(*guesses, strict=True))
    return Score(r2, law, sum(map(len, chosen)), spent / total, slowest)


def rows(folder: Path, tasks, laws, only, repeats: int) -> Iterator[dict]:
    """A row for each task, law and share: the mean over the repeats and its range."""
    for name in tasks:
        for law in TASKS[name].laws:
            if laws and law not in laws:
                continue
            pools = pools_of(folder, name, law)
            for share, best in zip(TASKS[name].shares, TASKS[name].published, strict=True):
                if only and share not in only:
                    continue
                scores = [score(pools, share, seed) for seed in range(repeats)]
                r2 = [s.r2 for s in scores]
                yield {
                    "task": name,
                    "law": law,
                    "share": share,
                    "r2": round(float(np.mean(r2)), 4),
                    "r2_low": round(min(r2), 4),
                    "r2_high": round(max(r2), 4),
                    "r2_law": round(float(np.mean([s.r2_law for s in scores])), 4),
                    "published_over_laws": best,
                    "repeats": repeats,
                    "runs": round(float(np.mean([s.runs for s in scores])), 1),
                    "spent": round(float(np.mean([s.spent for s in scores])), 4),
                    "slowest_choice_s": round(max(s.slowest_s for s in scores), 3),
                    "date": date.today().isoformat(),
                    "commit": commit(),
                }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """R2 by task and share, mean over laws, beside the best published."""
    return (
        table.groupby(["task", "share"], sort=False)
        .agg(
            r2=("r2", "mean"),
            r2_law=("r2_law", "mean"),
            published=("published_over_laws", "first"),
            laws=("law", "size"),
            slowest_choice_s=("slowest_choice_s", "max"),
        )
        .reset_index()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder with the yardstick's tables")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--laws", nargs="+", help="names of laws; default: all of a task")
    parser.add_argument("--shares", nargs="+", type=float, help="default: all of a task")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "design.csv")
    parser.add_argument("--summary", action="store_true", help="only sum up --out")
    given = parser.parse_args()
    if not given.summary:
        if given.data is None:
            parser.error("give --data FOLDER, or --summary")
        for row in rows(given.data, given.tasks, given.laws, given.shares, given.repeats):
            write_row(given.out, row, ("task", "law", "share"))
            print(row, flush=True)
    print(summary(pd.read_csv(given.out)).to_string(index=False))


def write_row(path: Path, row: dict, keys: tuple[str, ...]) -> None:
    """Put a row in the place of an earlier one with the same keys."""
    before = list(csv.DictReader(path.open())) if path.exists() else []
    kept = [r for r in before if any(str(r[k]) != str(row[k]) for k in keys)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, row])


if __name__ == "__main__":
    main()
