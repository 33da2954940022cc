"""Many small trials on one device: what 1, 2, 4, 8 of them train together, through Ray.

    python -m benchmarks.packing --preset small                      one GPU, shares 1, 1/2, 1/4, 1/8
    python -m benchmarks.packing --preset nano --steps 300           a dry run on a CPU
    ... --record                                                     appended to results/packing.csv

Each trial goes through everything `parcae run` does, with the fraction of the device reserved. Tokens
are counted only while all of them train: from the moment the last has made a few steps to the moment
the first is done, so that starting processes and evaluating do not count. `parcae plan` and `parcae
run` read the best fraction of a preset and device from the recorded rows. A share of a CPU keeps no
trial from using a whole core, so a dry run there shows that this works and its rows are not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import append_rows, provenance
from parcae_core.accounting.hardware import cpu_device
from parcae_core.result import TrainResult
from parcae_core.trial import Trial
from sweeps.design.plan import Plan, plan, resolve_data
from sweeps.design.spec import parse_spec
from sweeps.runner.driver import Options, make_job, prepare_data, schedule
from sweeps.store import Store

WARM_STEPS = 5  # of the slowest trial, before anything counts
TIMES_FILE = "times.jsonl"


def train_and_note_times(trial: Trial, *, run_dir: Path, **given: Any) -> TrainResult:
    """`parcae_core.training.train.train`, with the wall time of every step left beside its metrics."""
    from parcae_core.training.train import train

    execution = replace(given.pop("execution"), log_every_steps=1)
    with (run_dir / TIMES_FILE).open("w") as file:
        passed_on: Callable = given.pop("on_report")

        def on_report(line: dict[str, Any]) -> None:
            file.write(json.dumps([time.time(), line["step"]]) + "\n")
            passed_on(line)

        return train(trial, run_dir=run_dir, on_report=on_report, execution=execution, **given)


def make_plan(args: argparse.Namespace, n: int, *, on_gpu: bool) -> Plan:
    """`n` trials that differ in their seed, each with a share of 1/n of the device."""
    share = {"cpus": args.cpus / n, "gpus": 1 / n} if on_gpu else {"cpus": args.cpus / n}
    spec = {
        "name": f"packing-{n}", "design": "list", "preset": args.preset, "min_steps": 1,
        "trials": [{"mean_recurrence": args.mean_recurrence,
                    "n_tokens": args.steps * args.batch * args.context}],
        "batch_sequences": args.batch, "context": args.context, "seeds": list(range(n)),
        "data": {"corpus": args.corpus, "tokenizer": args.tokenizer},
        "evaluation": {"loops": [1], "n_sequences": 1},
        "precision": "bfloat16" if on_gpu else "float32",
        "resources": share | {"share": "given"}, "wandb": {"mode": "disabled"},
    }  # fmt: skip
    parsed = parse_spec(spec, "packing")
    return plan(parsed, resolve_data(parsed, "packing"), where="packing")


def run(planned: Plan, cpus: int, data_root: Path) -> tuple[float, float]:
    """(tokens per second of all trials together, seconds they were counted over).

    Raises:
        SystemExit: if a trial failed, or the trials did not all train at the same time.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec_path = Path(folder) / "spec.yaml"
        spec_path.write_text("")
        store = Store(folder, planned.name)
        store.write_plan(planned, spec_path)
        data_dirs = prepare_data(planned, Store(data_root, planned.name), planned.trials)
        options = Options(cpus=cpus, train=train_and_note_times, wandb_mode="disabled")
        schedule(make_job(planned, store, data_dirs, options), list(planned.trials), options)
        unfinished = [t for t in planned.trials if store.state(t).state != "done"]
        if unfinished:
            reasons = {store.state(t).reason for t in unfinished}
            raise SystemExit(
                f"{len(unfinished)} trials did not finish: {reasons}; nothing to report"
            )
        folders = [store.folder(t.trial_id) for t in planned.trials]
        return together([read_times(f) for f in folders], planned.trials[0].batch_tokens)


def read_times(folder: Path) -> list[tuple[float, int]]:
    """(wall time, updates made) after every step."""
    lines = (folder / TIMES_FILE).read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


def together(times: list[list[tuple[float, int]]], batch_tokens: int) -> tuple[float, float]:
    """(tokens per second, seconds) while all trials train.

    Raises:
        SystemExit: if there was no such time.
    """
    begin = max(next(at for at, step in t if step >= WARM_STEPS) for t in times)
    end = min(t[-1][0] for t in times)
    counted = [[step for at, step in t if begin <= at <= end] for t in times]
    if end <= begin or min(map(len, counted)) < 2:
        raise SystemExit(
            f"{len(times)} trials were never at work together for two steps; raise --steps so that "
            "the first is not done before the last has begun"
        )
    steps = 0.0
    for t, seen in zip(times, counted, strict=True):
        inside = [at for at, _ in t if begin <= at <= end]
        # whole steps between the first and the last seen, over the time between those two
        steps += (seen[-1] - seen[0]) / (inside[-1] - inside[0])
    return steps * batch_tokens, end - begin


def main() -> None:
    args = _arguments()
    on_gpu = torch.cuda.is_available()
    if args.record and not on_gpu:
        raise SystemExit(
            "--record: torch sees no GPU here, and shares of a CPU bind nobody; leave --record out"
        )
    rows: list[dict] = []
    for n in args.concurrent:
        planned = make_plan(args, n, on_gpu=on_gpu)
        trial = planned.trials[0]
        per_s, seconds = run(planned, args.cpus, args.data_root)
        alone = next((r["tokens_per_s"] for r in rows if r["concurrent"] == 1), None)
        row = provenance() | {
            "preset": args.preset,
            "n_params": trial.cost.n_params,
            "precision": trial.precision,
            "context": trial.context,
            "batch_sequences": trial.batch_sequences,
            "mean_recurrence": trial.mean_recurrence,
            "concurrent": n,
            "fraction": round(1 / n, 4),
            "cpus": args.cpus,
            "tokens_per_s": round(per_s, 1),
            "flops_per_s": f"{per_s * trial.train_flops('exact') / trial.n_tokens:.5g}",
            "seconds_together": round(seconds, 1),
            "over_one": "" if alone is None and n > 1 else round(per_s / (alone or per_s), 3),
            "load_1min": round(os.getloadavg()[0], 1),
        }
        if not on_gpu:
            row["device"] = cpu_device(max(1, args.cpus // n))  # the threads of one trial
        rows.append(row)
        print(
            f"{n} x {args.preset} at 1/{n} of {row['device']}: {per_s:,.0f} tokens/s together over "
            f"{seconds:.0f} s, {row['over_one']}x one alone",
            flush=True,
        )
    if args.record:
        print("rows appended to", append_rows("packing", rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=200, help="of each trial")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--mean-recurrence", type=int, default=4)
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--cpus", type=int, default=1, help="that all trials share")
    parser.add_argument("--data-root", type=Path, default=Path("runs"), help="keeps prepared rows")
    parser.add_argument("--record", action="store_true", help="append the rows to results/")
    return parser.parse_args()


if __name__ == "__main__":
    main()
