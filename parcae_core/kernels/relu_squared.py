"""y = 0.5 * relu(x)^2, elementwise, any shape. dy/dx = relu(x).

Autograd's own chain keeps two intermediates and makes seven passes over the widest tensor of a
block; torch's path here keeps one and makes three. The kernel makes two and, except in float16,
keeps none: relu(x) = sqrt(2 y), and the product that follows keeps y for its own gradient.
Source: Parcae (arXiv:2604.12946), MLP; the factor 0.5 is the published implementation's
(REFERENCE.md, "Forward").
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from parcae_core.kernels import dispatch
from parcae_core.kernels.dispatch import Impl, tl, triton


def relu_squared_ref(x: Tensor) -> Tensor:
    """The definition."""
    return 0.5 * F.relu(x).square()


if triton is not None:

    @triton.jit
    def _relu_squared_fwd_kernel(x, y, N, BN: tl.constexpr):
        offs = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
        b_r = tl.load(x + offs, mask=offs < N, other=0.0).to(tl.float32)
        # a NaN stays one: the maximum of a GPU would return the other number
        b_r = tl.where(b_r < 0, 0.0, b_r)
        tl.store(y + offs, (0.5 * b_r * b_r).to(y.dtype.element_ty), mask=offs < N)

    @triton.jit
    def _relu_squared_bwd_kernel(dy, kept, dx, N, BN: tl.constexpr, KEPT_Y: tl.constexpr):
        offs = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
        b_r = tl.load(kept + offs, mask=offs < N, other=0.0).to(tl.float32)
        b_r = tl.sqrt(2 * b_r) if KEPT_Y else tl.where(b_r < 0, 0.0, b_r)
        b_dy = tl.load(dy + offs, mask=offs < N, other=0.0).to(tl.float32)
        tl.store(dx + offs, (b_dy * b_r).to(dx.dtype.element_ty), mask=offs < N)

    @dispatch.operator
    def _relu_squared(x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        block, n_blocks = _blocks(x.numel())
        dispatch.launched(_relu_squared_fwd_kernel)[(n_blocks,)](
            x, y, x.numel(), BN=block, **dispatch.LAUNCH
        )
        return y

    @dispatch.operator
    def _relu_squared_bwd(dy: Tensor, kept: Tensor, kept_y: bool) -> Tensor:
        dy, kept = dy.contiguous(), kept.contiguous()
        dx = torch.empty_like(kept)
        block, n_blocks = _blocks(kept.numel())
        dispatch.launched(_relu_squared_bwd_kernel)[(n_blocks,)](
            dy, kept, dx, kept.numel(), BN=block, KEPT_Y=kept_y, **dispatch.LAUNCH
        )
        return dx

    def _keep(ctx, inputs, output) -> None:
        # in float16 the square of what is below 2e-4 is lost, and with it the gradient
        ctx.kept_y = output.dtype != torch.float16
        ctx.save_for_backward(output if ctx.kept_y else inputs[0])

    def _gradient(ctx, dy: Tensor) -> Tensor:
        return _relu_squared_bwd(dy, *ctx.saved_tensors, ctx.kept_y)

    _relu_squared.register_autograd(_gradient, setup_context=_keep)


def _blocks(n: int) -> tuple[int, int]:
    """(elements per program, programs)."""
    elements, _, n_blocks = dispatch.row_blocks(n, 1, tensors=2)
    return elements, n_blocks


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        r = F.relu(x)
        ctx.save_for_backward(r)
        return torch.addcmul(r.new_zeros(()), r, r, value=0.5)  # one pass, factor included

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        (r,) = ctx.saved_tensors
        return dy * r


def relu_squared(x: Tensor, *, impl: Impl = "auto") -> Tensor:
    """0.5 * relu(x)^2, same shape and dtype as x.

    Raises:
        ValueError: if the kernel was asked for and cannot run.
    """
    if dispatch.use_triton("relu_squared", impl, x):
        return _relu_squared(x)
    return dispatch.apply(_ReluSquared, x)
