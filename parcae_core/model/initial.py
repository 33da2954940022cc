"""What weights and states begin as. Source: REFERENCE.md, "Init" ("scaled-zero")."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from parcae_core.seeds import STATES_ON_CPU


@torch.no_grad()
def orthogonal_(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with a random matrix of orthonormal rows or columns, scaled to element std `std`.

    By QR of a truncated normal.
    """
    rows, cols = weight.shape
    tall = torch.empty(max(rows, cols), min(rows, cols))
    nn.init.trunc_normal_(tall, generator=generator)
    q, r = torch.linalg.qr(tall)
    q = q * torch.sign(torch.diagonal(r))  # makes the distribution uniform over orthogonal matrices
    weight.copy_((q if rows >= cols else q.T) * (std * math.sqrt(max(rows, cols))))


@torch.no_grad()
def identity_or_orthogonal_(weight: Tensor, generator: torch.Generator) -> None:
    """Identity when square; otherwise orthonormal rows or columns."""
    rows, cols = weight.shape
    if rows == cols:
        nn.init.eye_(weight)
    else:
        orthogonal_(weight, 1 / math.sqrt(max(rows, cols)), generator)


@torch.no_grad()
def reset_block_(block: nn.Module, generator: torch.Generator) -> None:
    """The layers of a transformer block; what writes to the residual stream begins at 0."""
    std = math.sqrt(2 / (5 * block.attn.q.in_features))
    for name, linear in block.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        if name.endswith(("attn.out", "mlp.down")):
            linear.weight.zero_()
        elif name.endswith("value_gate"):
            bound = 1 / math.sqrt(linear.in_features)  # torch's default for a linear layer
            linear.weight.uniform_(-bound, bound, generator=generator)
        else:
            orthogonal_(linear.weight, std, generator)


def cut_normal(uniform: Tensor, std: float) -> Tensor:
    """Normal numbers cut at 3 sigma from uniform ones in [0, 1), by the quantile function."""
    edge = math.erf(3 / math.sqrt(2))
    return torch.erfinv((2 * uniform - 1) * edge).mul_(std * math.sqrt(2))


def state_key(seed: int, step: int, index: int) -> int:
    """Seed of the generator that draws a sequence's h_0; see `Parcae.seeded_state`."""
    key = np.random.SeedSequence((seed, STATES_ON_CPU, step, index))
    return int(key.generate_state(1, np.uint64)[0] >> 1)
