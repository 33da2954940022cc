"""What a model runs, decided once: the layers' ops and the cross-entropy of the head.

"auto" takes the kernels on a GPU, and on a CPU whole blocks of torch's operations. Code that wants to
know what ran reads the model's `kernels`; a run's result records its ops.
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
    block: Literal["apart", "joined"] = "apart"  # one node of autograd, on a CPU
    cross_entropy: CrossEntropy = "torch"


TORCH = Kernels()  # the definitions
ON_CPU = Kernels(block="joined")


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
    if impl == "torch":
        return TORCH
    if impl == "auto" and not on_gpu:
        return ON_CPU
    problem = unavailable(device, width)
    if problem is not None and impl == "triton":
        raise UserError(f"kernels: impl='triton' {problem}; use impl='torch'")
    return Kernels(
        ops="torch" if problem else "triton",
        mlp="apart" if problem else "joined",
        cross_entropy="liger" if on_gpu and has_liger() else "torch",
    )
