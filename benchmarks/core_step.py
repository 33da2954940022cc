"""One training step (forward + backward) and the test-time curve: ours against the definitions.

    python -m benchmarks.core_step                  the step and the curve, rows appended to results/
    python -m benchmarks.core_step --upstream DIR   also the published implementation, from a clone

Same weights, tokens and depths for ours and the masked definition; the published model draws its
own depths from the same distribution, so its tokens/s is compared as a median over many steps.
The equality of ours and the masked definition is checked first; a failed check reports no speed.
`python -m benchmarks.speed` measures more variants, on a GPU as well; this is the command of the
rows in results/core_step.csv, and the one that knows the published implementation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from statistics import median

import torch

from benchmarks.cases import (
    DEPTH,
    MEAN_BACKPROP_DEPTH,
    MEAN_RECURRENCE,
    Case,
    Step,
    check,
    curve,
    executed_over_ideal,
    peak_mib,
    training_step,
)
from benchmarks.common import append_rows, interleaved, provenance, quantiles
from benchmarks.published import published_step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="small")
    parser.add_argument("--vocab-size", type=int, help="instead of the preset's")
    parser.add_argument("--batch", type=int, default=16, help="sequences (default 16)")
    parser.add_argument("--seq-len", type=int, default=256, help="tokens each (default 256)")
    parser.add_argument("--steps", type=int, default=12, help="timed steps (default 12)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--curve-loops", type=int, default=24, help="K of T = 1..K (default 24)")
    parser.add_argument("--upstream", help="folder with the published implementation's packages")
    parser.add_argument("--only", choices=("step", "curve"), help="one of the two measurements")
    parser.add_argument("--dry", action="store_true", help="print only, append no rows")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak_mib(_case(args), _variants(args)[args.memory_of]))
        return
    check(_case(args), ("ours",))
    rows = [] if args.only == "curve" else _step_rows(args)
    rows += [] if args.only == "step" else _curve_rows(args)
    if not args.dry:
        print("rows appended to", append_rows("core_step", rows))


def _case(args) -> Case:
    return Case(
        preset=args.preset,
        batch=args.batch,
        seq_len=args.seq_len,
        device=torch.device("cpu"),
        precision="float32",
        vocab_size=args.vocab_size,
    )


def _variants(args) -> dict[str, Step]:
    case = _case(args)
    out = {
        name: training_step(case, name, optimizer=False, micro_batch=args.batch)
        for name in ("ours", "masked")
    }
    return out | ({"published": published_step(case, args.upstream)} if args.upstream else {})


def _step_rows(args) -> list[dict]:
    variants = _variants(args)
    seconds = interleaved(variants, steps=args.steps)
    draws = [DEPTH.sample(args.batch, seed=0, step=s) for s in range(args.steps)]
    masked = executed_over_ideal(_case(args), "masked", draws)
    executed = {"ours": 1.0, "masked": masked, "published": masked}
    tokens = args.batch * args.seq_len
    rows = []
    for name in variants:
        mid, low, high = quantiles(seconds[name])
        ratio = median(a / b for a, b in zip(seconds[name], seconds["ours"], strict=True))
        if name == "published":  # other depths in each step: compare medians, not pairs
            ratio = mid / median(seconds["ours"])
        memory = _memory_in_a_new_process(name)
        print(
            f"step   {name:10s} {tokens / mid:8.0f} tokens/s  [{tokens / high:.0f}, {tokens / low:.0f}]"
            f"  ours is {ratio:.2f}x  steps/ideal {executed[name]:.2f}  peak {memory:.0f} MiB"
        )
        rows.append(
            _row(args, "train step", name, tokens, mid, low, high, ratio)
            | {"executed_over_ideal": round(executed[name], 3), "peak_mib": round(memory)}
        )
    return rows


def _curve_rows(args) -> list[dict]:
    """Losses after every T = 1..K: one pass of ours against K forwards of the definition."""
    case = _case(args)
    one_pass, separate = (curve(case, name, args.curve_loops) for name in ("ours", "masked"))
    seconds = interleaved({"one pass": one_pass, "separate": separate}, steps=3, warmup=1)
    rows = []
    for name in seconds:
        mid, low, high = quantiles(seconds[name])
        ratio = median(a / b for a, b in zip(seconds[name], seconds["one pass"], strict=True))
        print(f"curve  {name:10s} {mid:8.2f} s  [{low:.2f}, {high:.2f}]  one pass is {ratio:.2f}x")
        rows.append(
            _row(
                args,
                f"curve T=1..{args.curve_loops}",
                name,
                args.batch * args.seq_len,
                mid,
                low,
                high,
                ratio,
            )
            | {"executed_over_ideal": "", "peak_mib": ""}
        )
    return rows


def _row(args, what, variant, tokens, mid, low, high, ratio) -> dict:
    return provenance() | {
        "what": what,
        "variant": variant,
        "preset": args.preset + (f", vocabulary {args.vocab_size}" if args.vocab_size else ""),
        "batch": args.batch,
        "seq_len": args.seq_len,
        "mean_recurrence": MEAN_RECURRENCE,
        "mean_backprop_depth": MEAN_BACKPROP_DEPTH,
        "seconds_median": round(mid, 5),
        "seconds_q20": round(low, 5),
        "seconds_q80": round(high, 5),
        "tokens_per_s": round(tokens / mid, 1),
        "ours_speedup": round(ratio, 3),
    }


def _memory_in_a_new_process(variant: str) -> float:
    command = [sys.executable, "-m", "benchmarks.core_step", *sys.argv[1:], "--memory-of", variant]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
