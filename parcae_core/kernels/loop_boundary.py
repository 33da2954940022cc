"""x = a_bar * h + injected;  u = RMSNorm(x; w).

h, injected, x, u (B, T, S), a_bar and w (S,). Computed in float32. With d = dx + (the norm's gradient,
as in rms_norm.py) the gradients are
    dh = a_bar * d,  dinjected = d,  da_bar = sum over rows of d * h,  dw = sum over rows of du * x * r.
One pass each way in every loop step. x is not kept for the backward but made again from h and
`injected`: h is needed anyway, and `injected` is one tensor for all steps.
Source: Parcae (arXiv:2604.12946), the discretised update h' = A_bar h + B_bar e and the norm of the
core's first block; `injected` is B_bar e.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parcae_core.kernels import dispatch
from parcae_core.kernels.dispatch import Impl, tl, triton
from parcae_core.kernels.rms_norm import rms_norm, rms_norm_ref


def loop_boundary_ref(
    h: Tensor, a_bar: Tensor, injected: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The definition: (next input of the core, its RMS norm)."""
    x = a_bar.to(h.dtype) * h + injected
    return x, rms_norm_ref(x, weight, eps)


if triton is not None:
    from parcae_core.kernels.rms_norm import norm_gradient

    @triton.jit
    def _loop_boundary_fwd_kernel(
        h, a_bar, injected, w, x, u, r, M, S, eps, BM: tl.constexpr, BS: tl.constexpr
    ):
        rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
        cols = tl.arange(0, BS)
        mask = (rows < M)[:, None] & (cols < S)[None, :]
        offs = rows[:, None] * S + cols[None, :]
        b_a = tl.load(a_bar + cols, mask=cols < S, other=0.0).to(tl.float32)[None, :]
        b_w = tl.load(w + cols, mask=cols < S, other=0.0).to(tl.float32)[None, :]
        b_h = tl.load(h + offs, mask=mask, other=0.0).to(tl.float32)
        b_i = tl.load(injected + offs, mask=mask, other=0.0).to(tl.float32)
        b_x = b_a * b_h + b_i
        b_r = 1 / tl.sqrt(tl.sum(b_x * b_x, axis=1) / S + eps)
        tl.store(x + offs, b_x.to(x.dtype.element_ty), mask=mask)
        tl.store(u + offs, (b_x * b_r[:, None] * b_w).to(u.dtype.element_ty), mask=mask)
        tl.store(r + rows, b_r, mask=rows < M)

    @triton.jit
    def _loop_boundary_bwd_kernel(
        dx, du, h, a_bar, injected, w, r, dh, dinjected, da_part, dw_part,
        M, S, BM: tl.constexpr, BS: tl.constexpr,
    ):  # fmt: skip
        i_p = tl.program_id(0)
        cols = tl.arange(0, BS)
        b_a = tl.load(a_bar + cols, mask=cols < S, other=0.0).to(tl.float32)[None, :]
        b_w = tl.load(w + cols, mask=cols < S, other=0.0).to(tl.float32)[None, :]
        b_da = tl.zeros([BS], dtype=tl.float32)
        b_dw = tl.zeros([BS], dtype=tl.float32)
        for i_m in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
            rows = (i_m * BM + tl.arange(0, BM)).to(tl.int64)
            mask = (rows < M)[:, None] & (cols < S)[None, :]
            offs = rows[:, None] * S + cols[None, :]
            b_h = tl.load(h + offs, mask=mask, other=0.0).to(tl.float32)
            b_i = tl.load(injected + offs, mask=mask, other=0.0).to(tl.float32)
            b_x = b_a * b_h + b_i
            b_r = tl.load(r + rows, mask=rows < M, other=0.0)[:, None]
            b_du = tl.load(du + offs, mask=mask, other=0.0).to(tl.float32)
            b_d = tl.load(dx + offs, mask=mask, other=0.0).to(tl.float32)
            b_d += norm_gradient(b_x, b_r, b_w, b_du, S)
            tl.store(dh + offs, (b_a * b_d).to(dh.dtype.element_ty), mask=mask)
            tl.store(dinjected + offs, b_d.to(dinjected.dtype.element_ty), mask=mask)
            b_da += tl.sum(b_d * b_h, axis=0)
            b_dw += tl.sum(b_du * b_x * b_r, axis=0)
        # one partial sum per program, added up by torch: deterministic, unlike atomics
        tl.store(da_part + i_p * S + cols, b_da, mask=cols < S)
        tl.store(dw_part + i_p * S + cols, b_dw, mask=cols < S)

    @dispatch.operator
    def _loop_boundary(
        h: Tensor, a_bar: Tensor, injected: Tensor, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, normed x, and r of each row for the backward."""
        h, a_bar, injected, weight = (t.contiguous() for t in (h, a_bar, injected, weight))
        S, M = h.shape[-1], h.numel() // h.shape[-1]
        x, u = torch.empty_like(h), torch.empty_like(h, dtype=dtype)
        r = torch.empty(M, device=h.device, dtype=torch.float32)
        bm, bs, n_blocks = dispatch.row_blocks(M, S, tensors=2)
        dispatch.launched(_loop_boundary_fwd_kernel)[(n_blocks,)](
            h, a_bar, injected, weight, x, u, r, M, S, eps, BM=bm, BS=bs, **dispatch.LAUNCH
        )
        return x, u, r

    @dispatch.operator
    def _loop_boundary_bwd(
        dx: Tensor, du: Tensor, h: Tensor, a_bar: Tensor, injected: Tensor, weight: Tensor,
        r: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """dh, dinjected and the partial sums of da_bar and dw of each program, (2, n, S)."""
        dx, du = dx.contiguous(), du.contiguous()
        h, a_bar, injected, weight = (t.contiguous() for t in (h, a_bar, injected, weight))
        S, M = h.shape[-1], r.numel()
        dh, dinjected = torch.empty_like(h), torch.empty_like(injected)
        bm, bs, n_blocks = dispatch.row_blocks(M, S, tensors=4)
        n = dispatch.n_programs(h.device, n_blocks)
        parts = torch.empty(2, n, S, device=h.device, dtype=torch.float32)
        dispatch.launched(_loop_boundary_bwd_kernel)[(n,)](
            dx, du, h, a_bar, injected, weight, r, dh, dinjected, parts[0], parts[1], M, S,
            BM=bm, BS=bs, **dispatch.LAUNCH,
        )  # fmt: skip
        return dh, dinjected, parts

    def _keep(ctx, inputs, output) -> None:
        dispatch.only_real_gradients(ctx, *output[:2])
        ctx.save_for_backward(*inputs[:4], output[2])

    def _gradient(ctx, dx: Tensor | None, du: Tensor | None, dr: None):
        _, a_bar, _, weight, _ = ctx.saved_tensors
        dx, du = dispatch.or_zeros(ctx, dx, du)
        dh, dinjected, parts = _loop_boundary_bwd(dx, du, *ctx.saved_tensors)
        da, dw = parts.sum(1)
        return dh, da.to(a_bar.dtype), dinjected, dw.to(weight.dtype), None, None

    _loop_boundary.register_autograd(_gradient, setup_context=_keep)


def loop_boundary(
    h: Tensor,
    a_bar: Tensor,
    injected: Tensor,
    weight: Tensor,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Carry the state into the next loop step and norm it for the core's first attention.

    Args:
        h: state after the last step, (B, T, S).
        a_bar: decay of each channel, (S,).
        injected: what the prelude adds in every step, shape and dtype of h.
        weight: of the norm, (S,).
        eps: added to the mean square.
        dtype: of the normed input with impl "triton"; None: that of h. torch's own norm decides
            for itself.

    Returns:
        (x, normed x), both (B, T, S); x in the dtype of h.

    Raises:
        ValueError: if shapes or dtypes disagree, or the kernel was asked for and cannot run.
    """
    width = (h.shape[-1],)
    if h.ndim != 3 or h.shape != injected.shape or not a_bar.shape == weight.shape == width:
        raise ValueError(
            f"loop_boundary: h {tuple(h.shape)} and injected {tuple(injected.shape)} must be one "
            f"shape (B, T, S), a_bar {tuple(a_bar.shape)} and weight {tuple(weight.shape)} (S,)"
        )
    if h.dtype != injected.dtype:
        raise ValueError(f"loop_boundary: h is {h.dtype} and injected {injected.dtype}; cast one")
    if dispatch.use_triton("loop_boundary", impl, h, a_bar, injected, weight, width=h.shape[-1]):
        return _loop_boundary(h, a_bar, injected, weight, eps, dtype or h.dtype)[:2]
    x = torch.addcmul(injected, a_bar.to(h.dtype), h)
    return x, rms_norm(x, weight, eps)
