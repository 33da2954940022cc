"""Many small trials on one device: what 1, 2, 4, 8 of them train together, as plain processes.

    python -m benchmarks.packing --preset small                      one GPU, shares 1, 1/2, 1/4, 1/8
    python -m benchmarks.packing --preset nano --steps 300           a dry run on a CPU
    ... --record, or --results DIR                                   appended to packing.csv

Each trial trains as `parcae run` would have it, with the fraction of the device's memory as its bound.
Tokens are counted only while all of them train: from the moment the last has made a few steps to the
moment the first is done, so that starting processes and evaluating do not count. `parcae plan` and
`parcae run` read the best fraction of a preset and device from the recorded rows. A share of a CPU keeps
no trial from using a whole core, so a dry run there shows that this works and its rows are not kept.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.common import RESULTS, append_rows, provenance
from benchmarks.processes import Task, looped_trial, prepared, read_times, side_by_side
from parcae_core.accounting.hardware import cpu_device
from parcae_core.trial import DataConfig, Trial

WARM_STEPS = 5  # of the slowest trial, before anything counts


def make_trials(args: argparse.Namespace, n: int, data: DataConfig) -> list[Trial]:
    """`n` trials that differ in their seed."""
    return [
        looped_trial(
            args.preset, data, mean_recurrence=args.mean_recurrence, context=args.context,
            batch_sequences=args.batch, n_steps=args.steps, seed=seed,
        )
        for seed in range(n)
    ]  # fmt: skip


def run(trials: list[Trial], cpus: int, data_dir: Path) -> tuple[float, float]:
    """(tokens per second of all trials together, seconds they were counted over).

    Raises:
        SystemExit: if a trial failed, or the trials did not all train at the same time.
    """
    n = len(trials)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(
                trial=t, data_dir=data_dir, run_dir=Path(folder) / t.trial_id, share=1 / n,
                threads=max(1, cpus // n), every_step=True,
            )
            for t in trials
        ]  # fmt: skip
        failed = [i for i, code in side_by_side(tasks, n).items() if code]
        if failed:
            log = (Path(folder) / failed[0] / "log.txt").read_text()
            raise SystemExit(f"{len(failed)} of {n} trials failed; the first said:\n{log[-2000:]}")
        return together([read_times(t.run_dir) for t in tasks], trials[0].batch_tokens)


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


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    on_gpu = torch.cuda.is_available()
    if args.record and not on_gpu:
        raise SystemExit(
            "--record: torch sees no GPU here, and shares of a CPU bind nobody; leave --record out"
        )
    data, data_dir = prepared(args.corpus, args.tokenizer, args.context, args.data_root)
    alone = None
    for n in args.concurrent:
        trials = make_trials(args, n, data)
        per_s, seconds = run(trials, args.cpus, data_dir)
        alone = per_s if n == 1 else alone
        trial = trials[0]
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
            "over_one": "" if alone is None else round(per_s / alone, 3),
            "load_1min": round(os.getloadavg()[0], 1),
        }
        if not on_gpu:
            row["device"] = cpu_device(max(1, args.cpus // n))  # the threads of one trial
        if args.record or args.results:
            append_rows("packing", [row], args.results or RESULTS)
        print(
            f"{n} x {args.preset} at 1/{n} of {row['device']}: {per_s:,.0f} tokens/s together over "
            f"{seconds:.0f} s, {row['over_one']}x one alone",
            flush=True,
        )


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=200, help="of each trial")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--mean-recurrence", type=int, default=4)
    parser.add_argument("--corpus", default="python-stdlib")
    parser.add_argument("--tokenizer", help="default: bytes, or a generated corpus's own")
    parser.add_argument("--cpus", type=int, default=1, help="that all trials share")
    parser.add_argument(
        "--data-root", type=Path, default=Path("runs/_data"), help="of prepared rows"
    )
    parser.add_argument("--record", action="store_true", help="append the rows to results/")
    parser.add_argument("--results", type=Path, help="append the rows to packing.csv there")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
