"""What Ray, Tune and the store cost: seconds per trial, and how near a makespan comes to its bound.

    python -m benchmarks.orchestration overhead     50 trials that do nothing, on 2 cores
    python -m benchmarks.orchestration makespan     54 trials that sleep, in the paper's proportions

Rows go to benchmarks/results/orchestration.csv. The trials go through everything a real one does
(lease, state, result, validation) but train nothing; W&B is off.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.common import append_rows, provenance
from parcae_core.result import EvalRow, TrainResult
from parcae_core.trial import DataConfig, Trial
from sweeps.design.estimate import longest_first
from sweeps.design.plan import plan
from sweeps.design.spec import parse_spec
from sweeps.runner.cluster.connect import ray_cluster
from sweeps.runner.driver import Options, make_job, schedule
from sweeps.runner.trainable import data_key
from sweeps.store import Store

SLOTS = 4  # of the makespan; sleeping needs no core
LONGEST_S = 30.0


def no_op(trial: Trial, **_: object) -> TrainResult:
    """A result that validates, at once."""
    rows = (
        EvalRow(n_loops=n, val_loss=2.0, val_bpb=3.0, n_tokens=1) for n in trial.evaluation.loops
    )
    return TrainResult(
        status="done", trial_id=trial.trial_id, step=trial.n_steps, reason=None,
        evaluation=tuple(rows), final_train_loss=2.0, n_tokens=trial.n_tokens, train_flops={},
        train_flops_sampled=0.0, core_sequence_steps=0, core_sequence_steps_ideal=0,
        data_epochs=0.0, train_s=1e-3, wall_s=1e-3, tokens_per_s=1.0, data_wait_share=0.0,
        micro_batch_sequences=1, n_out_of_memory=0, n_resumed=0, n_processes=1, threads=1,
        device="none", torch_version="none", precision="float32",
    )  # fmt: skip


def sleeping(trial: Trial, **given: object) -> TrainResult:
    """As long as its budget says, on a scale on which the longest takes LONGEST_S."""
    time.sleep(seconds_of(trial))
    return no_op(trial, **given)


def seconds_of(trial: Trial) -> float:
    return LONGEST_S * (trial.budget_flops / MIX["budgets_flops"][-1]) ** 0.5


BASE = {
    "design": "isoflop", "preset": "nano", "batch_sequences": 8, "data": {"corpus": "none"},
    "evaluation": {"n_sequences": 1}, "min_steps": 1,
}  # fmt: skip
NOTHING = BASE | {"name": "nothing", "budgets_flops": [1e12], "mean_recurrence": list(range(2, 52))}
MIX = BASE | {
    "name": "mix",
    "budgets_flops": [1e10 * 2**i for i in range(9)],
    "mean_recurrence": [2, 4, 6, 8, 10, 12],
}


def run(spec: dict, train, cpus: int) -> tuple[float, float, list[Trial]]:
    """(seconds of the whole run with Ray's start and end, of starting and ending alone, trials)."""
    data = DataConfig(corpus="none", fingerprint="0" * 64, tokenizer="bytes", vocab_size=259)
    planned = plan(parse_spec(spec, spec["name"]), data)
    with tempfile.TemporaryDirectory() as folder:
        spec_path = Path(folder) / "spec.yaml"
        spec_path.write_text("")
        store = Store(folder, planned.name)
        store.write_plan(planned, spec_path)
        options = Options(cpus=cpus, train=train, wandb_mode="disabled")
        rows = {data_key(t): folder for t in planned.trials}
        began = time.perf_counter()
        schedule(make_job(planned, store, rows, options), longest_first(planned.trials), store)
        whole = time.perf_counter() - began
        undone = [t.trial_id for t in planned.trials if store.state(t).state != "done"]
        if undone:
            raise SystemExit(f"{len(undone)} trials are not done: nothing to report")
    began = time.perf_counter()
    with ray_cluster(cpus=cpus):
        pass
    return whole, time.perf_counter() - began, list(planned.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=["overhead", "makespan"])
    case = parser.parse_args().case
    if case == "overhead":
        whole, ends, trials = run(NOTHING, no_op, cpus=2)
        bound = 0.0
    else:
        whole, ends, trials = run(MIX, sleeping, cpus=SLOTS)
        work = [seconds_of(t) for t in trials]
        bound = max(sum(work) / SLOTS, max(work))
    between = whole - ends
    row = {
        "case": case,
        "n_trials": len(trials),
        "wall_s": round(whole, 2),
        "ray_start_and_end_s": round(ends, 2),
        "lower_bound_s": round(bound, 2),
        "overhead_s_per_trial": round((between - bound) / len(trials), 3),
        "over_bound": round(between / bound - 1, 4) if bound else "",
        "load_1min": round(os.getloadavg()[0], 1),
        **provenance(),
    }
    print(row)
    print(append_rows("orchestration", [row]))


if __name__ == "__main__":
    main()
