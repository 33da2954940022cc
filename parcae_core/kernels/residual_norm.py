"""s = x + delta,  u = s * r * w  with r = (mean(s^2) + eps)^-1/2 over the last dimension.

x, delta, s, u (..., D), w (D,). Computed in float32. With g = du * w the gradients are
    d = ds + r * (g - s * r^2 * mean(g * s)),   dx = ddelta = d,   dw = sum over rows of du * s * r.
Fused, because the sum is written once and read for the norm in registers, and because u can be
written in the dtype of the matrix product that reads it: under autocast torch writes it in float32
and converts it for every product.
Source: Zhang & Sennrich (arXiv:1910.07467); eps as in REFERENCE.md, "Forward".
"""

from __future__ import annotations

import torch
from torch import Tensor

from parcae_core.kernels import dispatch
from parcae_core.kernels.dispatch import Impl, tl, triton
from parcae_core.kernels.rms_norm import rms_norm, rms_norm_ref


def residual_norm_ref(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The definition: (x + delta, its RMS norm)."""
    s = x + delta
    return s, rms_norm_ref(s, weight, eps)


if triton is not None:
    from parcae_core.kernels.rms_norm import norm_gradient

    @triton.jit
    def _residual_norm_fwd_kernel(
        x, delta, w, s, u, r, M, D, eps, BM: tl.constexpr, BD: tl.constexpr
    ):
        rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
        cols = tl.arange(0, BD)
        mask = (rows < M)[:, None] & (cols < D)[None, :]
        offs = rows[:, None] * D + cols[None, :]
        b_s = tl.load(x + offs, mask=mask, other=0.0).to(tl.float32)
        b_s += tl.load(delta + offs, mask=mask, other=0.0).to(tl.float32)
        # the norm of what is written: the backward reads it, and its terms cancel
        b_s = b_s.to(s.dtype.element_ty).to(tl.float32)
        b_r = 1 / tl.sqrt(tl.sum(b_s * b_s, axis=1) / D + eps)
        b_w = tl.load(w + cols, mask=cols < D, other=0.0).to(tl.float32)
        b_u = b_s * b_r[:, None] * b_w[None, :]
        tl.store(s + offs, b_s.to(s.dtype.element_ty), mask=mask)
        tl.store(u + offs, b_u.to(u.dtype.element_ty), mask=mask)
        tl.store(r + rows, b_r, mask=rows < M)

    @triton.jit
    def _residual_norm_bwd_kernel(
        ds, du, s, r, w, dx, ddelta, dw_part,
        M, D, BM: tl.constexpr, BD: tl.constexpr, SPLIT: tl.constexpr,
    ):  # fmt: skip
        i_p = tl.program_id(0)
        cols = tl.arange(0, BD)
        b_w = tl.load(w + cols, mask=cols < D, other=0.0).to(tl.float32)[None, :]
        b_dw = tl.zeros([BD], dtype=tl.float32)
        for i_m in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
            rows = (i_m * BM + tl.arange(0, BM)).to(tl.int64)
            mask = (rows < M)[:, None] & (cols < D)[None, :]
            offs = rows[:, None] * D + cols[None, :]
            b_s = tl.load(s + offs, mask=mask, other=0.0).to(tl.float32)
            b_du = tl.load(du + offs, mask=mask, other=0.0).to(tl.float32)
            b_r = tl.load(r + rows, mask=rows < M, other=0.0)[:, None]
            b_d = tl.load(ds + offs, mask=mask, other=0.0).to(tl.float32)
            b_d += norm_gradient(b_s, b_r, b_w, b_du, D)
            tl.store(dx + offs, b_d.to(dx.dtype.element_ty), mask=mask)
            if SPLIT:
                tl.store(ddelta + offs, b_d.to(ddelta.dtype.element_ty), mask=mask)
            b_dw += tl.sum(b_du * b_s * b_r, axis=0)
        # one partial sum per program, added up by torch: deterministic, unlike atomics
        tl.store(dw_part + i_p * D + cols, b_dw, mask=cols < D)

    @dispatch.operator
    def _residual_norm(
        x: Tensor, delta: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum, normed sum, and r of each row for the backward."""
        x, delta, weight = x.contiguous(), delta.contiguous(), weight.contiguous()
        D, M = x.shape[-1], x.numel() // x.shape[-1]
        s, u = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
        r = torch.empty(M, device=x.device, dtype=torch.float32)
        bm, bd, n_blocks = dispatch.row_blocks(M, D, tensors=2)
        dispatch.launched(_residual_norm_fwd_kernel)[(n_blocks,)](
            x, delta, weight, s, u, r, M, D, eps, BM=bm, BD=bd, **dispatch.LAUNCH
        )
        return s, u, r

    @dispatch.operator
    def _residual_norm_bwd(
        ds: Tensor, du: Tensor, s: Tensor, r: Tensor, weight: Tensor, delta_dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dx, ddelta (empty where it is dx) and one partial sum of dw for each program."""
        ds, du, weight = ds.contiguous(), du.contiguous(), weight.contiguous()
        D, M = s.shape[-1], r.numel()
        dx, split = torch.empty_like(s), delta_dtype != s.dtype
        ddelta = torch.empty(s.shape if split else (0,), device=s.device, dtype=delta_dtype)
        bm, bd, n_blocks = dispatch.row_blocks(M, D, tensors=4)
        n = dispatch.n_programs(s.device, n_blocks)
        dw_part = torch.empty(n, D, device=s.device, dtype=torch.float32)
        dispatch.launched(_residual_norm_bwd_kernel)[(n,)](
            ds, du, s, r, weight, dx, ddelta, dw_part, M, D,
            BM=bm, BD=bd, SPLIT=split, **dispatch.LAUNCH,
        )  # fmt: skip
        return dx, ddelta, dw_part

    def _keep(ctx, inputs, output) -> None:
        dispatch.only_real_gradients(ctx, *output[:2])
        ctx.save_for_backward(output[0], output[2], inputs[2])
        ctx.delta_dtype = inputs[1].dtype

    def _gradient(ctx, ds: Tensor | None, du: Tensor | None, dr: None):
        s, r, weight = ctx.saved_tensors
        ds, du = dispatch.or_zeros(ctx, ds, du)
        dx, ddelta, dw_part = _residual_norm_bwd(ds, du, s, r, weight, ctx.delta_dtype)
        ddelta = ddelta if ddelta.numel() else dx
        return dx, ddelta, dw_part.sum(0).to(weight.dtype), None, None

    _residual_norm.register_autograd(_gradient, setup_context=_keep)


def residual_norm(
    x: Tensor,
    delta: Tensor,
    weight: Tensor,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and norm the sum for the next one.

    Args:
        x: residual stream, (..., D).
        delta: what a branch adds, shape of x; its dtype may be narrower.
        weight: of the norm, (D,).
        eps: added to the mean square.
        dtype: of the normed sum with impl "triton"; None: that of x. torch's own norm decides
            for itself.

    Returns:
        (sum, normed sum), both (..., D); the sum in the dtype of x.

    Raises:
        ValueError: if shapes disagree, or the kernel was asked for and cannot run.
    """
    if x.shape != delta.shape or weight.shape != x.shape[-1:]:
        raise ValueError(
            f"residual_norm: x {tuple(x.shape)} and delta {tuple(delta.shape)} must have one shape "
            f"and weight {tuple(weight.shape)} must be ({x.shape[-1]},)"
        )
    if dispatch.use_triton("residual_norm", impl, x, delta, weight, width=x.shape[-1]):
        return _residual_norm(x, delta, weight, eps, dtype or x.dtype)[:2]
    s = x + delta
    return s, rms_norm(s, weight, eps)
