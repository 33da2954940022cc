"""What only a session on a card runs: what the card is, the model on and off, a law's trials.

`python -m benchmarks.gpu_session` starts each in a process of its own; see there. No ray, no pydantic.
"""

from __future__ import annotations

import json
import platform
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from benchmarks.cases import Case, check
from benchmarks.common import commit
from benchmarks.processes import Task, looped_trial, prepared, side_by_side
from benchmarks.rates import measure_rates, median_seconds
from parcae_core.kernels.attention import backend_order
from parcae_core.trial import Trial

LAW = "gpu-law"
LAW_FILES = ("trial.json", "result.json", "metrics.jsonl", "state.json")  # no checkpoints


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def probe(out: Path, *, heads: int, d_head: int, batch: int, context: int) -> None:
    """Versions, the rates of products and copies, and attention by each backend: probe.json."""
    where = device()
    rates = measure_rates(where, precision())
    found = {
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if where.type == "cuda" else "cpu",
        "capability": torch.cuda.get_device_capability() if where.type == "cuda" else None,
        "memory_bytes": torch.cuda.mem_get_info()[1] if where.type == "cuda" else None,
        "matmul_flops_per_s": rates.matmul_flops_per_s,
        "copy_bytes_per_s": rates.copy_bytes_per_s,
        "attention_s": {},
    }
    shape = (batch, heads, context, d_head)
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    q, k, v = (torch.randn(shape, device=where, dtype=dtype, requires_grad=True) for _ in range(3))
    for first in ("flash", "cudnn"):

        def both_ways() -> None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(y.sum(), (q, k, v))

        with backend_order(where, first):
            found["attention_s"][first] = median_seconds(both_ways)
    (out / "probe.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def on_off(out: Path, *, preset: str, context: int) -> None:
    """The model with its kernels and without, and replayed, against the masked definition."""
    case = Case(preset=preset, batch=3, seq_len=context, device=device(), precision=precision())
    for variant, (loss, gradient) in check(case, ("eager", "ours", "ours replayed")).items():
        print(f"{preset} {variant}: off by {loss:.1e} nats, gradients {gradient:.1e}")


def law(
    out: Path, *, preset: str, corpus: str, context: int, batch: int, budgets: list[float],
    means: list[int], seconds: float, rate_s: float, loops: int, n_sequences: int, threads: int,
) -> None:  # fmt: skip
    """As many budgets of an isoFLOP sweep as the time allows, packed without checkpoints.

    The top budget's mu_rec 4 (or the middle one) trains for `rate_s` first; from its rate, and what
    packing gained in this session, the largest budgets are dropped until the rest fits.

    Raises:
        SystemExit: if not even the smallest budget fits, or a trial failed.
    """
    began = time.monotonic()
    work = out / "work"
    data, data_dir = prepared(corpus, None, context, work / "data")
    alphabet = None if data.tokenizer == "bytes" else data.vocab_size

    def trial(budget: float, mean: int) -> Trial:
        wanted = {*range(1, loops + 1), mean}
        return looped_trial(
            preset, data, mean_recurrence=mean, context=context, batch_sequences=batch,
            budget_flops=budget, loops=sorted(wanted), n_sequences=n_sequences, vocab_size=alphabet,
        )  # fmt: skip

    folder = work / LAW
    first = trial(max(budgets), 4 if 4 in means else int(median(means)))
    share, gain = _packed(out, preset)
    task = Task(trial=first, data_dir=data_dir, run_dir=folder / first.trial_id, threads=threads)
    side_by_side([replace(task, stop_after_s=rate_s, every_step=True)], 1)
    rate = _rate(task.run_dir) * gain
    left = seconds - (time.monotonic() - began)
    # an eighth for starts, evaluations and the tail, in which not all places are taken
    fits = fitting(
        budgets, lambda b: sum(trial(b, m).train_flops("exact") for m in means), rate * left * 7 / 8
    )
    print(
        f"law: {rate:.3g} FLOP/s in all, {left:.0f} s left, budgets {fits} of {budgets}", flush=True
    )
    if not fits:
        raise SystemExit(
            f"law: not one budget fits {left:.0f} s at {rate:.3g} FLOP/s; lower the budgets"
        )
    trials = sorted(
        (trial(b, m) for b in fits for m in means), key=lambda t: -t.train_flops("exact")
    )
    tasks = [
        replace(task, trial=t, run_dir=folder / t.trial_id, share=1 / share,
                threads=max(1, threads // share))
        for t in trials
    ]  # fmt: skip
    codes = side_by_side(tasks, share, deadline=began + seconds)
    sweep = {
        "name": LAW, "design": "isoflop", "spec_sha256": "", "git_commit": commit(),
        "trials": [t.trial_id for t in trials],
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(sweep))
    pack(folder, out / "law.tar.xz")
    done = sum(code == 0 for code in codes.values())
    print(f"law: {done} of {len(trials)} trials done in {time.monotonic() - began:.0f} s")
    if failed := [i for i, code in codes.items() if code]:
        raise SystemExit(
            f"law: {len(failed)} trials failed: {(folder / failed[0] / 'log.txt').read_text()[-1500:]}"
        )


def fitting(budgets: list[float], cost, flops: float) -> list[float]:
    """The smallest budgets that cost no more than `flops` together."""
    fits = sorted(budgets)
    while fits and sum(map(cost, fits)) > flops:
        fits.pop()
    return fits


def pack(folder: Path, path: Path) -> None:
    """A sweep's folder without what a law does not need."""
    with tarfile.open(path, "w:xz") as archive:
        for file in sorted(folder.rglob("*")):
            if file.name in (*LAW_FILES, "sweep.json"):
                archive.add(file, f"{folder.name}/{file.relative_to(folder)}")


def _packed(out: Path, preset: str) -> tuple[int, float]:
    """(trials at a time, what they train together over one) by this session's packing rows."""
    import csv

    path = out / "packing.csv"
    if not path.exists():
        return 1, 1.0
    with path.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["preset"] == preset and r["over_one"]]
    best = max(rows, key=lambda r: float(r["over_one"]), default=None)
    return (
        (1, 1.0)
        if best is None
        else (n := int(best["concurrent"]), min(float(best["over_one"]), n))
    )


def _rate(run_dir: Path) -> float:
    """FLOP/s over the last half of a run's lines."""
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    if len(lines) < 2:
        raise SystemExit(
            f"law: the first trial left no rate: {(run_dir / 'log.txt').read_text()[-1500:]}"
        )
    a, b = lines[(len(lines) - 1) // 2], lines[-1]
    return (b["flops/sampled"] - a["flops/sampled"]) / (b["perf/wall_s"] - a["perf/wall_s"])
