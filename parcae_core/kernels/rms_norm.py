"""y = x * (mean(x^2) + eps)^-1/2 * w over the last dimension; accumulated in float32 or better.

x (..., D), w (D,) or None. With r = (mean(x^2) + eps)^-1/2 and g = dy * w:
    dx = r * (g - x * r^2 * mean(g * x)),   dw = sum over rows of dy * x * r.
On CUDA torch has a fused kernel, and a block's norms are fused with what comes before them
(residual_norm.py, loop_boundary.py share `norm_gradient`), so there is no kernel of its own here.
On a CPU torch composes the norm from six operations that each write a whole tensor and keep three
of them; this keeps x and one number per row.
Source: Zhang & Sennrich (arXiv:1910.07467); eps as in REFERENCE.md, "Forward".
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parcae_core.kernels.dispatch import apply, tl, triton


def rms_norm_ref(x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
    """The definition: torch's own; eps None is the dtype's machine epsilon."""
    if weight is not None and weight.dtype != x.dtype:
        # as under autocast; torch fuses one dtype only, and warns of two
        wide = torch.promote_types(x.dtype, weight.dtype)
        return F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(x.dtype)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


if triton is not None:

    @triton.jit
    def norm_gradient(b_s, b_r, b_w, b_du, D):
        """Gradient to s of u = s * r * w, all in float32; b_w (1, BD), b_r (BM, 1)."""
        b_g = b_du * b_w
        mean = tl.sum(b_g * b_s, axis=1)[:, None] / D
        return b_r * (b_g - b_s * b_r * b_r * mean)


@cache
def number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor on the CPU: torch makes one anew, and casts it, where it is given a float."""
    return torch.tensor(value, dtype=dtype, device="cpu")


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """r = (mean(x^2) + eps)^-1/2 over the last dimension, (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcdiv(
        number(eps, x.dtype), norm.square_(), number(x.shape[-1], x.dtype)
    ).rsqrt_()


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, r: Tensor
) -> tuple[Tensor, Tensor | None]:
    """(dx, dw) of y = x * r * w; dw is None without a weight."""
    width = x.shape[-1]
    dw = None
    if weight is not None:
        # both sums as matrix-vector products: no further temporary of x's size
        scaled = (dy * x).view(-1, width)
        dw = torch.mv(scaled.T, r.view(-1))
        inner = torch.mv(scaled, weight).view(r.shape)
        g = dy * weight
    else:
        inner = (dy * x).sum(-1, keepdim=True)
        g = dy
    shift = inner.mul_(r).mul_(r).div_(number(-width, x.dtype))
    return torch.addcmul(g, x, shift).mul_(r), dw


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        r = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, r)
        y = x * r
        return y if weight is None else y.mul_(weight)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, r = ctx.saved_tensors
        return *rms_norm_backward(dy, x, weight, r), None


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """RMS norm over the last dimension, shape and dtype of x.

    Args:
        weight: (D,), or None for no scale.
        eps: added to the mean square; None for the dtype's machine epsilon.
    """
    wide = x.dtype in (torch.float32, torch.float64)
    plain = x.device.type != "cpu" or not wide or torch.compiler.is_compiling()
    if plain or (weight is not None and weight.dtype != x.dtype):
        return rms_norm_ref(x, weight, eps)
    return apply(_RmsNorm, x, weight, torch.finfo(x.dtype).eps if eps is None else eps)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight, ones at the start."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
