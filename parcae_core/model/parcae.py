"""The Parcae model, prelude -> core looped -> coda, and its fixed-depth Transformer baseline.

    e      = RMS(prelude(ids))
    h_t+1  = core(A_bar * h_t + B_bar e)          t = 0..T-1, h_0 ~ N(0, sigma^2)
    logits = head(RMS(coda(C h_T)))

B batch, T time, D model width, S state width, V vocabulary.
Source: Parcae (arXiv:2604.12946), "Architecture"; REFERENCE.md, "Forward, exactly".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parcae_core.accounting.params import kv_width
from parcae_core.config import ModelConfig
from parcae_core.depth import DepthDraw
from parcae_core.kernels.choice import TORCH, Kernels, choose
from parcae_core.kernels.dispatch import Impl
from parcae_core.kernels.joined_block import joins
from parcae_core.kernels.linear_cross_entropy import linear_cross_entropy
from parcae_core.kernels.lookup import lookup
from parcae_core.kernels.rms_norm import RMSNorm
from parcae_core.model.initial import (
    cut_normal,
    identity_or_orthogonal_,
    orthogonal_,
    reset_block_,
    state_key,
)
from parcae_core.model.injection import build_injection
from parcae_core.model.layers import Block, Embedding, Linear, Rotary
from parcae_core.model.loop import Trace, advance, advance_static, as_draw, sort_by_depth, upload


@dataclass(kw_only=True, slots=True)
class ModelOutput:
    """What one forward returns; `loss` with targets, `logits` without."""

    loss: Tensor | None = None  # mean nats per token, scalar
    logits: Tensor | None = None  # (B, T, V)
    core_sequence_steps: int = 0  # loop steps executed, summed over sequences
    instruments: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Prepared:
    """Everything the loop and the coda read that does not change from step to step."""

    drive: object  # the injection's share that depends on e alone
    core_values: list[Tensor | None]  # value embeddings of the core's layers, (B, T, G*K)
    coda_values: list[Tensor | None]


class Parcae(nn.Module):
    """See the module's docstring; `build_model` makes one with initialised weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c, p, q = config, config.n_prelude, config.n_prelude + config.n_core
        self.embedding = Embedding(c.vocab_size, c.d_model)
        self.prelude = nn.ModuleList(Block(c, i) for i in range(p))
        self.core = nn.ModuleList(Block(c, i) for i in range(p, q))
        self.coda = nn.ModuleList(Block(c, i) for i in range(q, c.n_layers))
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): Embedding(c.vocab_size, kv_width(c, i))
                for i in range(c.n_layers)
                if c.has_value_embedding(i)
            }
        )
        self.norm_prelude = RMSNorm(c.d_model, c.norm_eps) if c.has_prelude_norm else nn.Identity()
        self.norm_final = RMSNorm(c.d_model, c.norm_eps)
        if not c.is_transformer:
            self.injection = build_injection(c)
        if c.has_readout:
            self.readout = Linear(c.state_width, c.d_model, bias=False)
        self.head = None if c.tie_embeddings else Linear(c.d_model, c.vocab_size, bias=False)
        self.rotary = Rotary(c.d_model // c.n_head, c.context, c.rope_base)
        core_d_head = c.state_width // c.layer_heads(c.n_prelude)
        self.core_rotary = (
            self.rotary
            if core_d_head == c.d_model // c.n_head
            else Rotary(core_d_head, c.context, c.rope_base)
        )
        self.static_shapes = False  # see parcae_core.model.loop.advance_static
        self.use(TORCH)

    def use(self, kernels: Kernels) -> None:
        """Run these implementations from now on; the weights stay."""
        self.kernels = kernels
        for block in (*self.prelude, *self.core, *self.coda):
            block.attn.impl = block.mlp.impl = kernels.ops
            block.mlp.joined = kernels.mlp == "joined"
            block.joined = kernels.block == "joined" and block.can_join

    # ---- weights -------------------------------------------------------------------------------

    @property
    def head_weight(self) -> Tensor:
        """Unembedding, (V, D); the embedding itself when tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @property
    def state_std(self) -> float:
        """Standard deviation of h_0 before the cut at 3 sigma: that of the embedding's init."""
        return math.sqrt(2 / (5 * self.config.d_model))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialise every weight ("scaled-zero"). Source: REFERENCE.md, "Init"."""
        orthogonal_(self.embedding.weight, self.state_std, generator)
        if self.head is not None:
            orthogonal_(self.head.weight, self.state_std, generator)
        for block in (*self.prelude, *self.core, *self.coda):
            reset_block_(block, generator)
        for table in self.value_embeddings.values():
            table.weight.normal_(generator=generator)
        if not self.config.is_transformer:
            self.injection.reset_parameters(generator)
        if self.config.has_readout:
            identity_or_orthogonal_(self.readout.weight, generator)

    def initial_state(self, n: int, seq_len: int, *, generator: torch.Generator) -> Tensor:
        """h_0 for `n` sequences, (n, seq_len, S): normal, cut at 3 sigma, in float32.

        It is drawn on the generator's device and moved to the model's.
        """
        shape = (n, seq_len, self.config.state_width)
        uniform = torch.rand(shape, generator=generator, device=generator.device)
        return cut_normal(uniform, self.state_std).to(self.embedding.weight.device)

    def seeded_state(
        self, sequences: Sequence[int], seq_len: int, *, seed: int, step: int = 0
    ) -> Tensor:
        """h_0 as a function of (seed, step, sequence index) alone, however sequences are batched."""
        width, uniform = self.config.state_width, []
        for index in sequences:
            generator = torch.Generator().manual_seed(state_key(seed, step, int(index)))
            uniform.append(torch.rand(1, seq_len, width, generator=generator))
        return cut_normal(torch.cat(uniform), self.state_std).to(self.embedding.weight.device)

    # ---- forward -------------------------------------------------------------------------------

    def forward(
        self,
        ids: Tensor,
        n_loops: int | DepthDraw,
        *,
        targets: Tensor | None = None,
        state: Tensor | None = None,
        instruments: bool = False,
    ) -> ModelOutput:
        """Run the model.

        Args:
            ids: tokens, (B, T) int64.
            n_loops: loop steps, one number for all sequences (all with gradient), or a draw per
                sequence, split into steps without and with gradient. Must be 1 for a Transformer.
            targets: next tokens, (B, T); with them the loss is returned instead of the logits.
            state: initial state h_0, (B, T, S); drawn from seed 0 when left out.
            instruments: also measure the stability of this forward's loop.

        Raises:
            ValueError: loops < 1, a sequence longer than the context, ids outside the vocabulary,
                a state of another shape, or a depth draw for another batch size.
        """
        self._check(ids, state)
        if self.config.is_transformer:
            if n_loops != 1:
                raise ValueError(f"a fixed-depth Transformer runs once; n_loops is {n_loops}")
            return self._finish(ModelOutput(), self.transformer_states(ids), targets)
        draw = as_draw(n_loops, ids.shape[0])
        order = sort_by_depth(draw)
        if state is None:
            state = self.initial_state(*ids.shape, generator=torch.Generator().manual_seed(0))
        if order is not None:
            index = upload(order, ids.device)
            ids, state = ids[index], state[index]
            targets = None if targets is None else targets[index]
            draw = DepthDraw(no_grad=draw.no_grad[order], grad=draw.grad[order])
        prepared = self.prepare(ids)
        output = ModelOutput()
        run = advance_static if self.static_shapes else advance
        with torch.no_grad():
            h, steps = run(self._step(prepared, ids.shape[1]), state, draw.no_grad)
        trace = Trace() if instruments else None
        h, grad_steps = run(self._step(prepared, ids.shape[1]), h, draw.grad, trace=trace)
        output.core_sequence_steps = steps + grad_steps
        if trace is not None:
            output.instruments = self._measure(h, trace)
        output = self._finish(output, self.read_out(h, prepared), targets)
        if order is not None and output.logits is not None:
            output.logits = output.logits[upload(np.argsort(order), ids.device)]
        return output

    def states(self, ids: Tensor, state: Tensor) -> Iterator[tuple[Tensor, Prepared]]:
        """h_1, h_2, ... for whole sequences, each with what `read_out` needs; endless."""
        self._check(ids, state)
        prepared = self.prepare(ids)
        step, h = self._step(prepared, ids.shape[1]), state
        while True:
            h = step(h, ids.shape[0])
            yield h, prepared

    def transformer_states(self, ids: Tensor) -> Tensor:
        """Final normed states of the fixed-depth Transformer, (B, T, D)."""
        x, values = self._run_prelude(ids)
        later, values = (*self.core, *self.coda), values[self.config.n_prelude :]
        return self._through(later, self.rotary, values, x, then=self.norm_final)[1]

    def prepare(self, ids: Tensor) -> Prepared:
        """Prelude and everything else that does not depend on the loop step."""
        x, values = self._run_prelude(ids)
        p, q = self.config.n_prelude, self.config.n_prelude + self.config.n_core
        drive = self.injection.drive(self.norm_prelude(x))
        return Prepared(drive=drive, core_values=values[p:q], coda_values=values[q:])

    def read_out(self, h: Tensor, prepared: Prepared) -> Tensor:
        """Final normed states of the coda, (B, T, D), from loop states h (B, T, S)."""
        # under autocast the readout is low precision; the residual stream stays in the weights'
        x = self.readout(h).to(h.dtype) if self.config.has_readout else h
        values = prepared.coda_values
        return self._through(self.coda, self.rotary, values, x, then=self.norm_final)[1]

    def _run_prelude(self, ids: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        tables = [self.embedding.weight, *(t.weight for t in self.value_embeddings.values())]
        x, *rows = lookup(ids, tables, impl=self.kernels.ops)
        found = dict(zip(self.value_embeddings, rows, strict=True))
        values = [found.get(str(i)) for i in range(self.config.n_layers)]
        x, _ = self._through(self.prelude, self.rotary, values[: self.config.n_prelude], x)
        return x, values

    def _through(
        self,
        blocks: Iterable[Block],
        rotary: Rotary,
        values: list[Tensor | None],
        x: Tensor,
        *,
        u: Tensor | None = None,
        then: RMSNorm | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x after the blocks, and `then` of it (itself for None), both (B, T, D).

        u is x normed for the first block, where it is known already.
        """
        blocks = tuple(blocks)
        if self.kernels.ops == "torch":  # each block norms its own input: what a compiler can fuse
            for block, value in zip(blocks, values, strict=True):
                x = block(x, rotary, value)
            return x, x if then is None else then(x)
        u = blocks[0].norm_attn(x) if u is None else u
        norms = (*(block.norm_attn for block in blocks[1:]), then)
        for block, value, norm in zip(blocks, values, norms, strict=True):
            x, u = block.fused(x, u, rotary, value, norm)
        return x, u

    def _step(self, prepared: Prepared, seq_len: int):
        """One loop step over the first m sequences, as a function (h (m, T, S), m) -> h."""
        joined = all(block.joined for block in self.core) and joins(self.embedding.weight)
        if self.static_shapes or not joined:  # a compiler has made `core_step` its own

            def step(h: Tensor, m: int, active: Tensor | None = None) -> Tensor:
                return self.core_step(h, *self.first(prepared, m), active)

            return step

        # once for all loop steps: a module's look-ups cost a nano step a quarter of its time
        carry = self.injection.carry
        blocks = [block.bind(self.core_rotary, seq_len) for block in self.core]

        def joined_step(h: Tensor, m: int) -> Tensor:
            drive, values = self.first(prepared, m)
            x = carry(h, drive)
            for block, value in zip(blocks, values, strict=True):
                x = block(x, value)
            return x

        return joined_step

    def first(self, prepared: Prepared, m: int) -> tuple[object, list[Tensor | None]]:
        """What a loop step reads for the first m sequences: the drive, the value embeddings."""
        values = [None if value is None else _first(value, m) for value in prepared.core_values]
        return _first(prepared.drive, m), values

    def core_step(
        self,
        h: Tensor,
        drive: object,
        values: list[Tensor | None],
        active: Tensor | None = None,
    ) -> Tensor:
        """One loop step, (m, T, S) -> (m, T, S); where `active` (m,) is given, it holds the others."""
        x, u = self._enter(h, drive)
        x = self._through(self.core, self.core_rotary, values, x, u=u)[0]
        return x if active is None else torch.where(active[:, None, None], x, h)

    def _enter(self, h: Tensor, drive: object) -> tuple[Tensor, Tensor | None]:
        """The core's input in a loop step and, where one pass gives both, its norm."""
        ops = self.kernels.ops
        if ops == "torch":
            return self.injection.carry(h, drive), None
        return self.injection.carry_normed(h, drive, self.core[0].norm_attn, ops)

    def _finish(self, output: ModelOutput, x: Tensor, targets: Tensor | None) -> ModelOutput:
        if targets is None:
            output.logits = F.linear(x, self.head_weight)
        else:
            impl = self.kernels.cross_entropy
            output.loss = linear_cross_entropy(x, self.head_weight, targets, impl=impl)
        return output

    @torch.no_grad()
    def _measure(self, h: Tensor, trace: Trace) -> dict[str, float]:
        """Root-mean-square entries of the state and of its last change; the carry's radius.

        loop_norm_01, ... are the states' after each step that carries gradient.
        """
        change = h.detach().float() - trace.before.float()
        return {
            "spectral_radius": self.injection.spectral_radius(),
            "state_norm": h.detach().float().square().mean().sqrt().item(),
            "residual_norm": change.square().mean().sqrt().item(),
        } | {f"loop_norm_{i:02d}": norm.item() for i, norm in enumerate(trace.norms, 1)}

    def _check(self, ids: Tensor, state: Tensor | None) -> None:
        c = self.config
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= c.context:
            raise ValueError(
                f"ids {tuple(ids.shape)} must be (batch, time) with time between 1 and the "
                f"model's context of {c.context}"
            )
        # on a GPU this would wait for the device at every step; there the reader's check stands
        if ids.device.type == "cpu" and (int(ids.min()) < 0 or int(ids.max()) >= c.vocab_size):
            raise ValueError(
                f"token ids run from {int(ids.min())} to {int(ids.max())}; the vocabulary has "
                f"0 to {c.vocab_size - 1}"
            )
        wanted = (*ids.shape, c.state_width)
        if state is not None and tuple(state.shape) != wanted:
            raise ValueError(f"state {tuple(state.shape)} must be (batch, time, state) {wanted}")


def build_model(
    config: ModelConfig, *, seed: int, device: str = "cpu", impl: Impl = "auto"
) -> Parcae:
    """A model with initialised weights, the same on every device for a seed.

    Args:
        device: "meta" gives shapes without memory or values.
        impl: of the ops; see parcae_core.kernels.choice.

    Raises:
        UserError: if `impl` cannot run on `device`.
    """
    if device == "meta":
        with torch.device("meta"):
            return Parcae(config)
    # built on the CPU directly: the detour through meta tensors imports torch's compiler, 1 s and
    # 140 MB in every worker
    model = Parcae(config)
    width = max(config.d_model, config.state_width)
    model.use(choose(torch.device(device), impl, width=width))
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model.to(device)


def _first(values, m: int):
    """The first m sequences of a tensor (B, T, ...), or of each such tensor in a tuple."""
    if isinstance(values, tuple):
        return tuple(v if v.ndim == 1 else _first(v, m) for v in values)
    if values.shape[0] != m:
        values = values[:m]
    # a slice made without gradient still claims to need one, which confuses hooks
    return values if torch.is_grad_enabled() else values.detach()
