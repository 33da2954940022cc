"""The loop as the published implementation runs it: the baseline for speed, and a second definition.

Every sequence is computed up to the deepest one of its phase and masked, and everything that does
not depend on the step is recomputed in every step; all logits are held, and elementwise operations
run as their plain definitions. Same weights and matrix products as parcae_core.model.parcae.
Source: REFERENCE.md, "Quirks".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parcae_core.depth import DepthDraw
from parcae_core.kernels import rms_norm as rms_norm_file
from parcae_core.kernels.relu_squared import relu_squared_ref
from parcae_core.kernels.rope_qk_norm import rope_qk_norm_ref
from parcae_core.kernels.value_gate import value_gate_ref
from parcae_core.model import layers
from parcae_core.model.parcae import Parcae


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Blocks run the plain definitions of what parcae_core/kernels fuses."""
    plain = {
        (layers, "relu_squared"): lambda x, **_: relu_squared_ref(x),
        (layers, "rope_qk_norm"): lambda q, k, turn, *, norm, **_: rope_qk_norm_ref(
            q, k, turn, norm, None
        ),
        (layers, "value_gate"): lambda v, gate, e, **_: value_gate_ref(v, gate, e),
        (rms_norm_file, "rms_norm"): rms_norm_ref_defaults,
    }
    fused = {place: getattr(*place) for place in plain}
    try:
        for place, function in plain.items():
            setattr(*place, function)
        yield
    finally:
        for place, function in fused.items():
            setattr(*place, function)


def rms_norm_ref_defaults(x: Tensor, weight: Tensor | None = None, eps: float | None = None):
    return rms_norm_file.rms_norm_ref(x, weight, eps)


def masked_forward(
    model: Parcae, ids: Tensor, draw: DepthDraw, state: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Logits (B, T, V), loop states (B, T, S) and sequence steps executed."""
    config = model.config
    p, q = config.n_prelude, config.n_prelude + config.n_core

    def value(layer: int) -> Tensor | None:
        table = model.value_embeddings
        return table[str(layer)](ids) if str(layer) in table else None

    x = model.embedding(ids)
    for i, block in enumerate(model.prelude):
        x = block(x, model.rotary, value(i))
    e = model.norm_prelude(x)

    def step(h: Tensor) -> Tensor:
        h = model.injection.carry(h, model.injection.drive(e))
        for i, block in enumerate(model.core):
            h = block(h, model.core_rotary, value(p + i))
        return h

    h, executed = state, 0
    for counts, gradient in ((draw.no_grad, False), (draw.grad, torch.is_grad_enabled())):
        with torch.set_grad_enabled(gradient):
            for t in range(int(counts.max(initial=0))):
                active = torch.from_numpy(np.asarray(counts > t)).to(h.device)
                h = torch.where(active[:, None, None], step(h), h)
                executed += ids.shape[0]
    x = model.readout(h) if config.has_readout else h
    for i, block in enumerate(model.coda):
        x = block(x, model.rotary, value(q + i))
    return F.linear(model.norm_final(x), model.head_weight), h, executed


def masked_loss(
    model: Parcae, ids: Tensor, targets: Tensor, draw: DepthDraw, state: Tensor
) -> tuple[Tensor, int]:
    """Mean nats per token and sequence steps executed; all logits are held, as published."""
    with plain_operations():
        logits, _, executed = masked_forward(model, ids, draw, state)
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), executed
