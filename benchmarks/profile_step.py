"""Where one training step spends its time, by operation; on a GPU by kernel.

    python -m benchmarks.profile_step --preset 140m --batch 32 --precision bfloat16 --variant ours
    python -m benchmarks.profile_step --preset nano --batch 4 --seq-len 64 --variant eager

Prints only: a profile slows what it looks at, so its times are shares and not rows. `--trace FILE`
also writes a timeline for a browser.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import VARIANTS, Case, largest_micro_batch, training_step
from parcae_core.presets import preset


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--variant", choices=VARIANTS, default="ours")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--top", type=int, default=20, help="operations shown")
    parser.add_argument("--trace", help="file for a timeline")
    args = parser.parse_args(argv)
    on_gpu = torch.cuda.is_available()
    case = Case(
        preset=args.preset,
        batch=args.batch,
        seq_len=args.seq_len or preset(args.preset).context,
        device=torch.device("cuda" if on_gpu else "cpu"),
        precision=args.precision,
    )
    micro = largest_micro_batch(case, args.variant, optimizer=True)
    step = training_step(case, args.variant, optimizer=True, micro_batch=micro)
    step(0)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=kinds) as seen:
        for number in range(1, 3):
            step(number)
        if on_gpu:
            torch.cuda.synchronize()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(seen.key_averages().table(sort_by=by, row_limit=args.top, max_name_column_width=60))
    if args.trace:
        seen.export_chrome_trace(args.trace)


if __name__ == "__main__":
    main()
