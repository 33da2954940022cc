"""The training step and the test-time curve, every way there is to run them, and each op alone.

    python -m benchmarks.speed                            small preset on this machine, printed only
    python -m benchmarks.speed --record                   also appended to results/speed.csv, ops.csv
    python -m benchmarks.speed --preset 140m 370m --batch 32 --precision bfloat16 --record
    python -m benchmarks.speed --what step --variants ours masked --published DIR
                                                          also the published implementation, from a clone

Each variant is held to the masked definition first, and each op to its own in float64; what is not
equal is not timed. Rows are written one by one, to `--results DIR` where that is given. Variants are timed in turn, so that noise hits all alike. Beside
every time stand two floors: exact-rule FLOPs over the rate of a matrix product, and the least bytes
over the rate of a copy, both rates measured in the same run. MFU is by the exact rule with the depths
drawn, over the card's published peak (parcae_core/accounting/hardware.py); what masking computes in vain does
not count. The published model draws its own depths from the same distribution: medians are compared, not
pairs. `--what` picks among step, optimizer, curve and ops.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.cases import (
    COMPILED,
    MEAN_BACKPROP_DEPTH,
    MEAN_RECURRENCE,
    VARIANTS,
    Case,
    check,
    curve,
    executed_over_ideal,
    largest_micro_batch,
    peak_mib,
    training_step,
)
from benchmarks.common import RESULTS, append_rows, interleaved, provenance, quantiles
from benchmarks.ops import op_rows
from benchmarks.published import PUBLISHED, published_step
from benchmarks.rates import Rates, measure_rates
from parcae_core.accounting.flops import eval_flops_per_token
from parcae_core.accounting.hardware import peak_flops_per_s
from parcae_core.accounting.params import count_params, layer_matmul_params
from parcae_core.kernels.attention import backend_order

ROOT = Path(__file__).parents[1]
WHAT = ("step", "optimizer", "curve", "ops")
CURVE_LOOPS = 24
Save = Callable[[str, dict], None]


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    if args.memory_of:
        _print_memory(_case(args, args.preset[0], device, precision), args)
        return
    rates = measure_rates(device, precision)
    print(
        f"measured: products {rates.matmul_flops_per_s / 1e12:.4g} TFLOP/s in {precision}, "
        f"copy {rates.copy_bytes_per_s / 1e9:.4g} GB/s"
    )

    def save(file: str, row: dict) -> None:
        if args.record or args.results:
            append_rows(file, [row], args.results or RESULTS)

    with backend_order(device, args.attention):
        for name in args.preset:
            torch._dynamo.reset()
            case = _case(args, name, device, precision)
            _case_rows(case, args, rates, save)
            if "ops" in args.what:
                for row in op_rows(case.config, case.batch, case.seq_len, device, precision, rates):
                    save("ops", row)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", nargs="+", default=["small"])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batch", type=int, default=16, help="sequences a step (default 16)")
    parser.add_argument("--seq-len", type=int, help="tokens each (default: the preset's context)")
    parser.add_argument("--micro-batch", type=int, help="default: the largest that fits")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", type=int, default=8, help="timed steps (default 8)")
    parser.add_argument("--curve-batch", type=int, help="sequences of the curve (default: --batch)")
    parser.add_argument(
        "--attention", choices=("flash", "cudnn"), help="tried first (default: by the card)"
    )
    parser.add_argument("--published", metavar="DIR", help="clone of the published implementation")
    parser.add_argument("--threads", type=int, help="of a CPU")
    parser.add_argument("--record", action="store_true", help="append the rows to results/")
    parser.add_argument("--results", type=Path, help="append the rows to files in this folder")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _case(args, name: str, device: torch.device, precision: str) -> Case:
    from parcae_core.presets import preset

    seq_len = args.seq_len or preset(name).context
    return Case(preset=name, batch=args.batch, seq_len=seq_len, device=device, precision=precision)


def _case_rows(case: Case, args, rates: Rates, save: Save) -> None:
    wanted = [w for w in args.what if w != "ops"]
    if not wanted:
        return
    for variant, (loss, gradient) in check(case, tuple(args.variants)).items():
        print(f"{case.preset:8s} {variant:16s} off by {loss:.1e} nats, gradients {gradient:.1e}")
    torch._dynamo.reset()  # the check compiled another length
    for what in wanted:
        if what == "curve":
            _curve_rows(case, args, rates, save)
        else:
            _step_rows(case, args, rates, save, optimizer=what == "optimizer")


def _step_rows(case: Case, args, rates: Rates, save: Save, *, optimizer: bool) -> None:
    micro = {
        v: args.micro_batch or largest_micro_batch(case, v, optimizer=optimizer)
        for v in args.variants
    }
    steps = {
        v: training_step(case, v, optimizer=optimizer, micro_batch=micro[v]) for v in args.variants
    }
    if args.published and not optimizer:
        steps[PUBLISHED], micro[PUBLISHED] = published_step(case, args.published), case.batch
    seconds = interleaved(steps, steps=args.steps)
    draws = [case.draw(s) for s in range(args.steps)]
    flops = [case.step_flops(d) for d in draws]
    n_bytes = float(np.median([step_bytes(case, d) for d in draws]))
    what = "train step + optimizer" if optimizer else "train step"
    for v in steps:
        memory = None
        if case.device.type == "cuda":
            memory = peak_mib(case, steps[v])
        elif args.record:  # takes a process for each variant
            memory = _memory(args, case, v)
        per_s = median(f / s for f, s in zip(flops, seconds[v], strict=True))
        row = _row(case, what, v, seconds, per_s, rates)
        row |= _floors(rates, median(flops), n_bytes) | {
            "micro_batch": micro[v],
            "peak_mib": round(memory) if memory is not None else "",
            "executed_over_ideal": round(executed_over_ideal(case, v, draws), 3),
        }
        save("speed", row)
        _print(row)


def _curve_rows(case: Case, args, rates: Rates, save: Save) -> None:
    from dataclasses import replace

    if args.curve_batch and args.curve_batch != case.batch:
        case = replace(case, batch=args.curve_batch)
    seconds = interleaved(
        {v: curve(case, v, CURVE_LOOPS) for v in args.variants}, steps=3, warmup=1
    )
    model = case.config
    # one pass: the forward of T = 24, and 23 codas, readouts and heads more
    last, first = (eval_flops_per_token(model, t, case.seq_len) for t in (CURVE_LOOPS, 1))
    core = (last - first) / (CURVE_LOOPS - 1)
    prelude = sum(2 * layer_matmul_params(model, i) for i in range(model.n_prelude))
    flops = (last + (CURVE_LOOPS - 1) * (first - core - prelude)) * case.batch * case.seq_len
    for v in args.variants:
        row = _row(case, f"curve T=1..{CURVE_LOOPS}", v, seconds, flops / median(seconds[v]), rates)
        row |= _floors(rates, flops, curve_bytes(case)) | {
            "micro_batch": case.batch, "peak_mib": "", "executed_over_ideal": "",
        }  # fmt: skip
        save("speed", row)
        _print(row)


def step_bytes(case: Case, draw) -> float:
    """Least traffic of a step: each block reads and writes its stream once each way, weights once.

    Forward: read x, write y. Backward: read x and dy, write dx, read the weights again and write
    their gradient. A lower bound for any execution that does not fuse whole blocks.
    """
    model, low = case.config, 2 if case.precision == "bfloat16" else 4
    core = range(model.n_prelude, model.n_prelude + model.n_core)
    total = 0.0
    for i in range(model.n_layers):
        weights, stream = (
            low * layer_matmul_params(model, i),
            4 * case.seq_len * model.layer_width(i),
        )
        no_grad, grad = (draw.no_grad, draw.grad) if i in core else (None, np.ones(case.batch))
        total += 5 * stream * int(grad.sum()) + 3 * weights * int(grad.max())
        if no_grad is not None:
            total += 2 * stream * int(no_grad.sum()) + weights * int(no_grad.max())
    return total


def curve_bytes(case: Case) -> float:
    """Least traffic of the curve in one pass, counted as in `step_bytes`."""
    model, low = case.config, 2 if case.precision == "bfloat16" else 4
    total = 0.0
    for i in range(model.n_layers):
        times = 1 if i < model.n_prelude else CURVE_LOOPS
        stream = 4 * case.batch * case.seq_len * model.layer_width(i)
        total += times * (2 * stream + low * layer_matmul_params(model, i))
    return total


def _floors(rates: Rates, flops: float, n_bytes: float) -> dict:
    by_flops, by_bytes = rates.floors(flops=flops, n_bytes=n_bytes)
    return {"floor_flops_s": f"{by_flops:.4g}", "floor_bytes_s": f"{by_bytes:.4g}"}


def _row(case: Case, what: str, variant: str, seconds: dict, per_s: float, rates: Rates) -> dict:
    mid, low, high = quantiles(seconds[variant])
    peak = peak_flops_per_s(provenance()["device"], case.precision)
    ours = seconds.get("ours")
    ratio = median(a / b for a, b in zip(seconds[variant], ours, strict=True)) if ours else None
    if ours and variant == PUBLISHED:
        ratio = mid / median(ours)
    return provenance() | {
        "what": what,
        "variant": variant,
        "preset": case.preset,
        "n_params": count_params(case.config).total,
        "batch": case.batch,
        "seq_len": case.seq_len,
        "precision": case.precision,
        "mean_recurrence": MEAN_RECURRENCE,
        "mean_backprop_depth": MEAN_BACKPROP_DEPTH,
        "seconds_median": f"{mid:.5g}",
        "seconds_q20": f"{low:.5g}",
        "seconds_q80": f"{high:.5g}",
        "tokens_per_s": round(case.batch * case.seq_len / mid, 1),
        "flops_per_s": f"{per_s:.5g}",
        "mfu": "" if peak is None else round(per_s / peak, 4),
        "of_matmul_rate": round(per_s / rates.matmul_flops_per_s, 4),
        "matmul_flops_per_s": f"{rates.matmul_flops_per_s:.4g}",
        "copy_bytes_per_s": f"{rates.copy_bytes_per_s:.4g}",
        "ours_speedup": "" if ratio is None else round(ratio, 3),
        "load_1min": round(os.getloadavg()[0], 1),
    }


def _print(row: dict) -> None:
    share = (
        f"MFU {row['mfu']:.1%}" if row["mfu"] != "" else f"{row['of_matmul_rate']:.1%} of products"
    )
    memory = f"  peak {row['peak_mib']} MiB" if row["peak_mib"] != "" else ""
    against = f"  ours is {row['ours_speedup']}x" if row["ours_speedup"] != "" else ""
    print(
        f"{row['preset']:8s} {row['what']:23s} {row['variant']:16s} {row['tokens_per_s']:>10,.0f} tokens/s"
        f"  {row['seconds_median']} s [{row['seconds_q20']}, {row['seconds_q80']}]  {share}"
        f"  floors {row['floor_flops_s']} / {row['floor_bytes_s']} s{against}{memory}",
        flush=True,
    )


def _memory(args, case: Case, variant: str) -> float | None:
    """Peak of a step in a process of its own: on a CPU, pages of earlier variants stay resident.

    Compiled variants are left out there, since the compiler's own pages cannot be told apart.
    """
    if variant in COMPILED:
        return None
    command = [
        sys.executable, "-m", "benchmarks.speed", "--preset", case.preset, "--batch",
        str(case.batch), "--seq-len", str(case.seq_len), "--precision", case.precision,
        "--threads", str(torch.get_num_threads()), "--memory-of", variant,
    ]  # fmt: skip
    if variant == PUBLISHED:
        command += ["--published", args.published]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _print_memory(case: Case, args) -> None:
    if args.memory_of == PUBLISHED:
        step = published_step(case, args.published)
    else:
        step = training_step(case, args.memory_of, optimizer=False, micro_batch=case.batch)
    print(peak_mib(case, step))


if __name__ == "__main__":
    main()
