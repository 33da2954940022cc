"""One training step (forward + backward) and the test-time curve: ours against the definitions.

    python -m benchmarks.core_step                  the step and the curve, rows appended to results/
    python -m benchmarks.core_step --upstream DIR   also the published implementation, from a clone

Same weights, tokens and depths for ours and the masked definition; the published model draws its
own depths from the same distribution, so its tokens/s is compared as a median over many steps.
The equality of ours and the masked definition is checked first; a failed check reports no speed.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import append_rows, interleaved, provenance, quantiles
from benchmarks.masked import masked_loss
from parcae_core.config import ModelConfig
from parcae_core.cross_entropy import linear_cross_entropy
from parcae_core.depth import FixedDepth, PoissonDepth
from parcae_core.model import build_model
from parcae_core.presets import preset

MEAN_RECURRENCE, MEAN_BACKPROP_DEPTH = 8, 4
DEPTH = PoissonDepth(mean_recurrence=MEAN_RECURRENCE, mean_backprop_depth=MEAN_BACKPROP_DEPTH)


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
        print(_peak_memory(args, args.memory_of))
        return
    _check_equal(args)
    rows = [] if args.only == "curve" else _step_rows(args)
    rows += [] if args.only == "step" else _curve_rows(args)
    if not args.dry:
        print("rows appended to", append_rows("core_step", rows))


def _config(args) -> ModelConfig:
    config = preset(args.preset).replace(context=args.seq_len)
    return config if args.vocab_size is None else config.replace(vocab_size=args.vocab_size)


def _setup(args):
    config = _config(args)
    model = build_model(config, seed=0)
    ids = torch.randint(
        0, config.vocab_size, (args.batch, args.seq_len), generator=torch.Generator().manual_seed(0)
    )
    state = model.initial_state(
        args.batch, args.seq_len, generator=torch.Generator().manual_seed(0)
    )
    return model, ids, ids.roll(-1, 1), state


def _variants(args) -> dict:
    model, ids, targets, state = _setup(args)

    def ours(step: int) -> None:
        draw = DEPTH.sample(args.batch, seed=0, step=step)
        model(ids, draw, targets=targets, state=state).loss.backward()
        model.zero_grad()

    def masked(step: int) -> None:
        draw = DEPTH.sample(args.batch, seed=0, step=step)
        masked_loss(model, ids, targets, draw, state)[0].backward()
        model.zero_grad()

    out = {"ours": ours, "masked": masked}
    if args.upstream:
        published = _published(args)

        def upstream(step: int) -> None:
            published.step = step  # its depths are seeded by the step
            published(ids, labels=targets)["loss"].backward()
            published.zero_grad()

        out["published"] = upstream
    return out


def _published(args):
    """The published model of the same shape. Needs its packages; nothing of it is part of ours."""
    sys.path.insert(0, args.upstream)
    from parcae_lm.models.parcae.config import ParcaeConfig

    from parcae_core.upstream import upstream_settings

    config = _config(args)
    settings = upstream_settings(
        config, mean_recurrence=MEAN_RECURRENCE, mean_backprop_depth=MEAN_BACKPROP_DEPTH
    )
    del settings["_class_name"]
    settings["recurrent_num_attention_heads"] = None
    return ParcaeConfig(**settings).construct_model()


def _check_equal(args) -> None:
    model, ids, targets, state = _setup(args)
    draw = DEPTH.sample(args.batch, seed=0, step=0)
    losses, grads = [], []
    for run in ("ours", "masked"):
        model.zero_grad()
        if run == "ours":
            loss = model(ids, draw, targets=targets, state=state).loss
        else:
            loss = masked_loss(model, ids, targets, draw, state)[0]
        loss.backward()
        losses.append(loss.item())
        grads.append([p.grad.clone() for p in model.parameters()])
    worst = max(
        ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        for a, b in zip(*grads, strict=True)
    )
    # float32 with other summation orders; tests hold the two to 1e-9 in float64
    if abs(losses[0] - losses[1]) > 1e-5 or worst > 1e-3:
        raise SystemExit(f"not equal: losses {losses}, worst gradient difference {worst:.1e}")
    print(f"equal: losses differ by {abs(losses[0] - losses[1]):.1e}, gradients by {worst:.1e}")


def _step_rows(args) -> list[dict]:
    variants = _variants(args)
    seconds = interleaved(variants, steps=args.steps)
    draws = [DEPTH.sample(args.batch, seed=0, step=s) for s in range(args.steps)]
    ideal = sum(int(d.total.sum()) for d in draws)
    masked = sum(args.batch * int(d.no_grad.max() + d.grad.max()) for d in draws)
    executed = {"ours": 1.0, "masked": masked / ideal, "published": masked / ideal}
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
    """Logits after every T = 1..K: one pass of ours against K forwards of the definition."""
    model, ids, targets, state = _setup(args)
    loops = range(1, args.curve_loops + 1)

    @torch.no_grad()
    def one_pass(_: int) -> None:
        walk = model.states(ids, state)
        for _t in loops:
            h, prepared = next(walk)
            linear_cross_entropy(model.read_out(h, prepared), model.head_weight, targets)

    @torch.no_grad()
    def separate(_: int) -> None:
        for t in loops:
            draw = FixedDepth(mean_recurrence=t, mean_backprop_depth=1)
            masked_loss(model, ids, targets, draw.sample(args.batch, seed=0, step=0), state)

    seconds = interleaved({"one pass": one_pass, "separate": separate}, steps=3, warmup=1)
    rows = []
    for name in seconds:
        mid, low, high = quantiles(seconds[name])
        ratio = median(a / b for a, b in zip(seconds[name], seconds["one pass"], strict=True))
        print(f"curve  {name:10s} {mid:8.2f} s  [{low:.2f}, {high:.2f}]  one pass is {ratio:.2f}x")
        rows.append(
            _row(args, f"curve T=1..{args.curve_loops}", name, ids.numel(), mid, low, high, ratio)
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


def _peak_memory(args, variant: str) -> float:
    """MiB that the deepest of a few steps adds to what is resident before the first (Linux)."""
    run = _variants(args)[variant]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _high_water_kib()
    for step in range(3):
        run(step)
    return (_high_water_kib() - before) / 1024


def _high_water_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    main()
