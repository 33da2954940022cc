"""One model, one batch, and the ways to train on it and to read out its test-time curve.

    eager            the sorted loop with the plain definitions of every op
    compile          the same in static shapes, torch.compile
    ours             the sorted loop with the ops as parcae_core/kernels dispatches them
    ours apart       the same, relu^2 in passes of its own; on a CPU it always is
    ours compiled    "ours" in static shapes, torch.compile
    ours replayed    the same in static shapes, as CUDA graphs (on a CPU: as functions)
    masked           the masked definition (benchmarks/masked.py), plain ops, all logits held
    masked compiled  the same, each block compiled for static shapes: the public way

All have the same weights, tokens and depths. `check` holds each to the masked definition in float32.
"""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.masked import masked_loss, plain_operations
from parcae_core.config import ModelConfig
from parcae_core.depth import DepthDraw, FixedDepth, PoissonDepth
from parcae_core.device import autocast
from parcae_core.errors import is_out_of_memory
from parcae_core.kernels.choice import TORCH, choose
from parcae_core.kernels.linear_cross_entropy import token_losses
from parcae_core.model.loop import static_widths
from parcae_core.model.parcae import Parcae, build_model
from parcae_core.presets import preset
from parcae_core.training.batching import StepFlops, portions, select
from parcae_core.training.compile import compile_model
from parcae_core.training.graphs import Graphs
from parcae_core.training.optim import Optimizer
from parcae_core.trial import DataConfig, EvalConfig, OptimConfig, Trial

MEAN_RECURRENCE, MEAN_BACKPROP_DEPTH = 8, 4
DEPTH = PoissonDepth(mean_recurrence=MEAN_RECURRENCE, mean_backprop_depth=MEAN_BACKPROP_DEPTH)
VARIANTS = (
    "eager", "compile", "ours", "ours apart", "ours compiled", "ours replayed", "masked",
    "masked compiled",
)  # fmt: skip
COMPILED = ("compile", "ours compiled", "masked compiled")
# The step is timed at rates that leave the weights what they are: the work is the same at any rate
STILL = OptimConfig(muon_lr=1e-12, adamw_lr=1e-12, muon_weight_decay=0.0)

Step = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed, on what."""

    preset: str
    batch: int
    seq_len: int
    device: torch.device
    precision: str
    vocab_size: int | None = None  # None: the preset's

    @cached_property
    def config(self) -> ModelConfig:
        config = preset(self.preset).replace(context=self.seq_len)
        return config if self.vocab_size is None else config.replace(vocab_size=self.vocab_size)

    @cached_property
    def model(self) -> Parcae:
        """Weights without zeros: at their start most gradients vanish, and equality shows nothing."""
        model = build_model(self.config, seed=0)
        width = max(self.config.d_model, self.config.state_width)
        model.use(choose(self.device, "auto", width=width))
        generator = torch.Generator().manual_seed(1)
        for p in model.parameters():
            if not p.any():
                p.data.normal_(0, model.state_std, generator=generator)
        return model.to(self.device)

    @cached_property
    def plain(self) -> Parcae:
        """The same weights, for variants that do not take the kernels' dispatch."""
        model = copy.deepcopy(self.model)
        model.use(TORCH)
        return model

    @cached_property
    def apart(self) -> Parcae:
        """The same weights, products without epilogues."""
        model = copy.deepcopy(self.model)
        model.use(replace(self.model.kernels, mlp="apart"))
        return model

    @cached_property
    def compiled(self) -> Parcae:
        """The same weights, plain operations compiled."""
        model = copy.deepcopy(self.plain)
        compile_model(model)
        return model

    @cached_property
    def ours_compiled(self) -> Parcae:
        """The same weights, what is around the kernels compiled."""
        model = copy.deepcopy(self.model)
        compile_model(model)
        return model

    @cached_property
    def masked_compiled(self) -> Parcae:
        """The same weights with each block compiled for the one shape that masking has."""
        model = copy.deepcopy(self.plain)
        for block in (*model.prelude, *model.core, *model.coda):
            block.forward = torch.compile(block.forward, dynamic=False)
        return model

    @cached_property
    def graphs(self) -> Graphs:
        return Graphs(self.model, self.trial)

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, T), targets (B, T) and h_0 (B, T, S), the same on every device."""
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.config.vocab_size, (self.batch, self.seq_len), generator=draw)
        state = self.model.initial_state(self.batch, self.seq_len, generator=draw)
        return ids.to(self.device), ids.roll(-1, 1).to(self.device), state

    @cached_property
    def trial(self) -> Trial:
        return Trial(
            preset=self.preset, model=self.config, depth=DEPTH, optim=STILL,
            data=DataConfig(corpus="", fingerprint="", tokenizer="", vocab_size=1),
            evaluation=EvalConfig(loops=(1,), n_sequences=1), n_steps=1000,
            batch_sequences=self.batch, context=self.seq_len, seed=0, data_seed=0,
            precision=self.precision,
        )  # fmt: skip

    @cached_property
    def step_flops(self) -> Callable[[DepthDraw], float]:
        """Exact-rule FLOPs of a step from its depths; what masking adds is not counted."""
        return StepFlops(self.trial)

    def draw(self, step: int) -> DepthDraw:
        return DEPTH.sample(self.batch, seed=0, step=step)

    def model_of(self, variant: str) -> Parcae:
        copies = {
            "ours apart": "apart",
            "compile": "compiled",
            "ours compiled": "ours_compiled",
            "masked compiled": "masked_compiled",
        }
        if variant in copies:
            return getattr(self, copies[variant])
        return self.model if variant.startswith("ours") else self.plain


def ops_of(variant: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if variant.startswith("ours") else plain_operations()


def gradient(case: Case, variant: str, draw: DepthDraw, micro_batch: int) -> float:
    """Add one batch's gradient to the variant's model; mean nats per token."""
    model, (ids, targets, state) = case.model_of(variant), case.tensors
    everyone = np.arange(case.batch)
    if variant.startswith("masked"):
        parts = [everyone[i : i + micro_batch] for i in range(0, case.batch, micro_batch)]
    else:
        parts = portions(draw, everyone, micro_batch)
    total = torch.zeros((), device=case.device)
    for part in parts:
        whole = part.size == case.batch
        index = torch.from_numpy(part).to(case.device)
        x, y, h = (t if whole else t[index] for t in (ids, targets, state))
        depths = draw if whole else select(draw, part)
        if variant == "ours replayed":
            order = torch.from_numpy(np.lexsort((-depths.grad, -depths.no_grad)))
            depths, at = select(depths, order.numpy()), order.to(case.device)
            rows = torch.cat((x, y[:, -1:]), 1)[at]
            loss, _ = case.graphs.gradient(rows, depths, h[at], part.size / case.batch)
            total += loss * (part.size / case.batch)
            continue
        with autocast(case.device, case.precision), ops_of(variant):
            if variant.startswith("masked"):
                loss = masked_loss(model, x, y, depths, h)[0]
            else:
                loss = model(x, depths, targets=y, state=h).loss
            (loss * (part.size / case.batch)).backward()
        total += loss.detach() * (part.size / case.batch)
    return total.item()


def training_step(case: Case, variant: str, *, optimizer: bool, micro_batch: int) -> Step:
    """Forward and backward, and with `optimizer` also the clip and the update."""
    model = case.model_of(variant)
    update = Optimizer(model, STILL, n_steps=case.trial.n_steps) if optimizer else None

    def step(number: int) -> None:
        gradient(case, variant, case.draw(number), micro_batch)
        if update is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), STILL.grad_clip)
            update.update(number)
        model.zero_grad(set_to_none=True)

    return step


def curve(case: Case, variant: str, n_loops: int) -> Step:
    """Losses after every T = 1..n_loops: one pass of the loop, or `n_loops` masked forwards."""
    model, (ids, targets, state) = case.model_of(variant), case.tensors

    @torch.no_grad()
    def one_pass(_: int) -> None:
        with autocast(case.device, case.precision), ops_of(variant):
            for _t, (h, prepared) in zip(range(n_loops), model.states(ids, state), strict=False):
                token_losses(model.read_out(h, prepared), model.head_weight, targets)

    @torch.no_grad()
    def separate(_: int) -> None:
        with autocast(case.device, case.precision), ops_of(variant):
            for t in range(1, n_loops + 1):
                scheme = FixedDepth(mean_recurrence=t, mean_backprop_depth=1)
                depths = scheme.sample(case.batch, seed=0, step=0)
                masked_loss(model, ids, targets, depths, state)

    return separate if variant.startswith("masked") else one_pass


def largest_micro_batch(case: Case, variant: str, *, optimizer: bool) -> int:
    """The largest of batch, batch/2, ... whose step fits in memory."""
    size = case.batch
    while True:
        try:
            training_step(case, variant, optimizer=optimizer, micro_batch=size)(0)
            return size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        # outside the handler: the error's frames hold what did not fit
        case.model_of(variant).zero_grad(set_to_none=True)
        gc.collect()
        if case.device.type == "cuda":
            torch.cuda.empty_cache()
        size = -(-size // 2)


def check(case: Case, variants: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Hold each variant's loss and gradients to the masked definition in float32, on few sequences.

    A variant may be as far from it as 1.5 times the masked definition in the same precision, plus
    1e-3 of each gradient's norm and 1e-4 nats: orders of summation differ.

    Returns:
        variant -> (difference of the loss, worst relative error of a gradient).

    Raises:
        SystemExit: with what is not equal; nothing may be timed then.
    """
    small = replace(case, batch=min(3, case.batch), seq_len=min(128, case.seq_len))
    loss, grads = _loss_and_gradients(replace(small, precision="float32"), "masked")
    found = {}
    for variant in dict.fromkeys(("masked", *variants)):
        got, got_grads = _loss_and_gradients(small, variant)
        worst = max(
            ((a - b).norm() / b.norm().clamp_min(1e-12)).item()
            for a, b in zip(got_grads, grads, strict=True)
        )
        found[variant] = (abs(got - loss), worst)
    allowed = [1.5 * x + slack for x, slack in zip(found["masked"], (1e-4, 1e-3), strict=True)]
    wrong = {v: f for v, f in found.items() if f[0] > allowed[0] or not f[1] <= allowed[1]}
    if wrong:
        raise SystemExit(
            f"{case.preset}: not equal to the masked definition, so no speed is reported: {wrong} "
            f"(loss, gradient) where {allowed} is allowed"
        )
    return found


def _loss_and_gradients(case: Case, variant: str) -> tuple[float, list[Tensor]]:
    model = case.model_of(variant)
    model.zero_grad(set_to_none=True)
    loss = gradient(case, variant, case.draw(0), case.batch)
    grads = [p.grad.float().clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return loss, grads


def executed_over_ideal(case: Case, variant: str, draws: list[DepthDraw]) -> float:
    """Loop steps executed, summed over sequences, over those that the depths ask for."""
    ideal = sum(int(d.total.sum()) for d in draws)
    if variant.startswith(("masked", "published")):
        return sum(case.batch * int(d.no_grad.max() + d.grad.max()) for d in draws) / ideal
    if variant in ("compile", "ours compiled", "ours replayed"):
        return sum(int(static_steps(d).sum()) for d in draws) / ideal
    return 1.0


def static_steps(draw: DepthDraw) -> np.ndarray:
    """Sequence steps (without, with gradient) that `advance_static` runs for a draw."""
    active = draw.no_grad > np.arange(int(draw.no_grad.max(initial=0)))[:, None]
    rounded = static_widths(active.sum(1), draw.grad.size).sum()
    return np.array([rounded, draw.grad.size * draw.grad.max()])


def peak_mib(case: Case, step: Step, *, steps: int = 3) -> float:
    """MiB that the deepest of a few steps adds to what is resident before the first.

    On a CPU by resident pages (Linux), in a process that has run nothing larger before.
    """
    gc.collect()
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for number in range(steps):
            step(number)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _high_water_kib()
    for number in range(steps):
        step(number)
    return (_high_water_kib() - before) / 1024


def _high_water_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
