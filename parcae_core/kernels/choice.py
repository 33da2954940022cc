"""What a model runs, decided once: the layers' ops and the cross-entropy of the head.

"auto" takes the kernels on a GPU and torch on a CPU. Whoever wants to know what ran reads the
model's `kernels`; a run's result records it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from parcae_core.errors import UserError
from parcae_core.kernels.dispatch import Impl, check_impl, unavailable
from parcae_core.kernels.linear_cross_entropy import CrossEntropy, has_liger


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Implementations, resolved; each is what the op of that name is called with."""

    ops: Literal["torch", "triton"] = "torch"
    mlp: Literal["apart", "joined"] = "apart"  # relu^2 in the epilogues of the MLP's products
    cross_entropy: CrossEntropy = "torch"


TORCH = Kernels()


def choose(device: torch.device, impl: Impl = "auto", *, width: int = 1) -> Kernels:
    """What a model on `device` runs.

    Args:
        width: of its widest layer, in channels.

    Raises:
        UserError: if "triton" is asked for and cannot run there, or `impl` is unknown.
    """
    try:
        check_impl("kernels", impl)
    except ValueError as error:
        raise UserError(str(error)) from None
    on_gpu = device.type == "cuda"
    if impl == "torch" or (impl == "auto" and not on_gpu):
        return TORCH
    problem = unavailable(device, width)
    if problem is not None and impl == "triton":
        raise UserError(f"kernels: impl='triton' {problem}; use impl='torch'")
    return Kernels(
        ops="torch" if problem else "triton",
        mlp="apart" if problem else "joined",
        cross_entropy="liger" if on_gpu and has_liger() else "torch",
    )
