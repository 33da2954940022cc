"""Where one training step spends its time, by operation; on a GPU by kernel.

    python -m benchmarks.profile_step --preset 140m --batch 32 --precision bfloat16 --variant ours
    python -m benchmarks.profile_step --preset nano --batch 4 --seq-len 64 --variant eager

Prints only: a profile slows what it looks at, so its times are shares and not rows. `--trace FILE`
also writes a timeline for a browser.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import VARIANTS, Case, largest_micro_batch, training_step
from parcae_core.kernels.attention import backend_order
from parcae_core.presets import preset

STEPS = 2
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
# `aten::_local_scalar_dense` is what `.item()` ends in, on every device
WAITS = ("aten::_local_scalar_dense",)


def count(events, *names: str) -> int:
    """How often operations of these names ran."""
    return sum(e.count for e in events if e.key in names)


def launches(events) -> int:
    """Kernels launched; on a CPU, operations that did work of their own."""
    if found := count(events, *LAUNCHES):
        return found
    return sum(e.count for e in events if e.key.startswith("aten::") and e.self_cpu_time_total > 0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--variant", choices=VARIANTS, default="ours")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq-len", type=int)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--top", type=int, default=20, help="operations shown")
    parser.add_argument("--trace", help="file for a timeline")
    parser.add_argument("--table", type=Path, help="write the table to this file too")
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
    with backend_order(case.device):
        step = training_step(case, args.variant, optimizer=True, micro_batch=micro)
        step(0)
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        with profile(activities=kinds) as seen:
            for number in range(1, 1 + STEPS):
                step(number)
            if on_gpu:
                torch.cuda.synchronize()
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = seen.key_averages()
    table = events.table(sort_by=by, row_limit=args.top, max_name_column_width=60)
    table += (
        f"\na step: {launches(events) / STEPS:.0f} operations, "
        f"{count(events, *WAITS) / STEPS:.0f} waits for the device\n"
    )
    print(table)
    if args.table:
        args.table.write_text(table)
    if args.trace:
        seen.export_chrome_trace(args.trace)


if __name__ == "__main__":
    main()
