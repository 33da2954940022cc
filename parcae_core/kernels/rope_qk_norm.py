"""Rotary positions, then an RMS norm without weights, on queries and keys.

    n = R_t x,   y = n * r,   r = (mean(x^2) + eps)^-1/2   (a rotation changes no length)
    dn = r * (dy - y * mean(dy * y)),   dx = R_t^T dn

q (B, T, H, K), k (B, T, G, K); R_t turns the interleaved pairs (x_2i, x_2i+1) by the angle
t * base^(-2i/K), t from 0, given as a table of cosines and sines (context, K/2, 2). Without the norm
r is 1. Computed in float32, in one pass over q and k each way; the backward needs y, which attention
keeps as well, and one number a row. In dn most of dy can cancel when heads are narrow, and the
rounding of y would show: below a width of 64 x is kept instead.
Source: Su et al. (arXiv:2104.09864); order, pairs and eps as in REFERENCE.md, "Forward".
"""

from __future__ import annotations

import torch
from torch import Tensor

from parcae_core.kernels import dispatch
from parcae_core.kernels.dispatch import Impl, tl, triton
from parcae_core.kernels.rms_norm import rms_norm, rms_norm_ref

_KEEP_Y_FROM = 64  # head width


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs of x, (B, T, H, K), by the first T rows of `turn`, in float32 or better."""
    wide = x if x.dtype == torch.float64 else x.float()
    pairs, turn = wide.unflatten(-1, (-1, 2)), turn[: x.shape[1], None]  # (..., K/2, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Equal to the last bit, and a third of the time of torch's real products. A compiler cannot
        # fuse complex numbers.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
    else:
        (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), -1)
    return turned.flatten(-2).to(x.dtype)


def rope_qk_norm_ref(
    q: Tensor, k: Tensor, turn: Tensor, norm: bool, eps: float | None
) -> tuple[Tensor, Tensor]:
    """The definition."""
    q, k = rotate(q, turn), rotate(k, turn)
    return (rms_norm_ref(q, None, eps), rms_norm_ref(k, None, eps)) if norm else (q, k)


if triton is not None:

    @triton.jit
    def _pairs(start, offs, mask, BM: tl.constexpr, BK: tl.constexpr):
        """The two halves of every pair in a tile of (BM, BK), each (BM, BK/2) in float32."""
        b_x = tl.load(start + offs, mask=mask, other=0.0).to(tl.float32)
        return tl.split(tl.reshape(b_x, [BM, BK // 2, 2]))

    @triton.jit
    def _turn_rows(
        x, y, r, turn, T, HEADS, TOKEN, M, K, eps,
        NORM: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0) * BM + tl.arange(0, BM)  # (b, t, head)
        cols = tl.arange(0, BK)
        mask = (rows < M)[:, None] & (cols < K)[None, :]
        offs = rows.to(tl.int64)[:, None] * K + cols[None, :]
        place = (rows // HEADS % T)[:, None] * K + cols[None, :]
        at = (rows // HEADS).to(tl.int64) * TOKEN + rows % HEADS * K
        b_a, b_b = _pairs(x, at[:, None] + cols[None, :], mask, BM, BK)
        b_cos, b_sin = _pairs(turn, place, mask, BM, BK)
        b_r = 1.0
        if NORM:
            b_r = 1 / tl.sqrt(tl.sum(b_a * b_a + b_b * b_b, axis=1) / K + eps)
            tl.store(r + rows, b_r, mask=rows < M)
            b_r = b_r[:, None]
        b_y = tl.join((b_a * b_cos - b_b * b_sin) * b_r, (b_a * b_sin + b_b * b_cos) * b_r)
        tl.store(y + offs, tl.reshape(b_y, [BM, BK]).to(y.dtype.element_ty), mask=mask)

    @triton.jit
    def _turn_rows_back(
        dy, kept, r, turn, dx, T, HEADS, M, K,
        NORM: tl.constexpr, KEPT_Y: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        rows = tl.program_id(0) * BM + tl.arange(0, BM)
        cols = tl.arange(0, BK)
        mask = (rows < M)[:, None] & (cols < K)[None, :]
        offs = rows.to(tl.int64)[:, None] * K + cols[None, :]
        place = (rows // HEADS % T)[:, None] * K + cols[None, :]
        b_a, b_b = _pairs(dy, offs, mask, BM, BK)
        b_cos, b_sin = _pairs(turn, place, mask, BM, BK)
        if NORM:
            b_ya, b_yb = _pairs(kept, offs, mask, BM, BK)
            b_r = tl.load(r + rows, mask=rows < M, other=0.0)[:, None]
            if not KEPT_Y:
                b_xa = b_ya * b_r
                b_xb = b_yb * b_r
                b_ya = b_xa * b_cos - b_xb * b_sin
                b_yb = b_xa * b_sin + b_xb * b_cos
            b_mean = (tl.sum(b_a * b_ya + b_b * b_yb, axis=1) / K)[:, None]
            b_a = b_r * (b_a - b_ya * b_mean)
            b_b = b_r * (b_b - b_yb * b_mean)
        b_dx = tl.join(b_a * b_cos + b_b * b_sin, b_b * b_cos - b_a * b_sin)
        tl.store(dx + offs, tl.reshape(b_dx, [BM, BK]).to(dx.dtype.element_ty), mask=mask)

    @triton.jit
    def _rope_qk_norm_fwd_kernel(
        q, k, yq, yk, rq, rk, turn, T, H, G, MQ, MK, K, TOKEN_Q, TOKEN_K, eps,
        NORM: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        if tl.program_id(1) == 0:
            _turn_rows(q, yq, rq, turn, T, H, TOKEN_Q, MQ, K, eps, NORM, BM, BK)
        else:
            _turn_rows(k, yk, rk, turn, T, G, TOKEN_K, MK, K, eps, NORM, BM, BK)

    @triton.jit
    def _rope_qk_norm_bwd_kernel(
        dyq, dyk, kept_q, kept_k, rq, rk, turn, dq, dk, T, H, G, MQ, MK, K,
        NORM: tl.constexpr, KEPT_Y: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    ):  # fmt: skip
        if tl.program_id(1) == 0:
            _turn_rows_back(dyq, kept_q, rq, turn, dq, T, H, MQ, K, NORM, KEPT_Y, BM, BK)
        else:
            _turn_rows_back(dyk, kept_k, rk, turn, dk, T, G, MK, K, NORM, KEPT_Y, BM, BK)

    @dispatch.operator
    def _rope_qk_norm(
        q: Tensor, k: Tensor, turn: Tensor, norm: bool, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q and k turned and normed, and r of each of their rows for the backward."""
        (q, token_q), (k, token_k), turn = (
            dispatch.head_rows(q),
            dispatch.head_rows(k),
            turn.contiguous(),
        )
        sizes, rows = _sizes(q, k), torch.contiguous_format
        yq, yk = (torch.empty_like(t, memory_format=rows) for t in (q, k))
        rq, rk = (torch.empty(m, device=q.device, dtype=torch.float32) for m in sizes[3:5])
        bm, bk, n_blocks = dispatch.row_blocks(sizes[3], sizes[-1], tensors=2)
        dispatch.launched(_rope_qk_norm_fwd_kernel)[(n_blocks, 2)](
            q, k, yq, yk, rq, rk, turn, *sizes, token_q, token_k, eps,
            NORM=norm, BM=bm, BK=bk, **dispatch.LAUNCH,
        )  # fmt: skip
        return yq, yk, rq, rk

    @dispatch.operator
    def _rope_qk_norm_bwd(
        dyq: Tensor, dyk: Tensor, kept_q: Tensor, kept_k: Tensor, rq: Tensor, rk: Tensor,
        turn: Tensor, norm: bool, kept_y: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dyq, dyk, turn = dyq.contiguous(), dyk.contiguous(), turn.contiguous()
        kept_q, kept_k, sizes = kept_q.contiguous(), kept_k.contiguous(), _sizes(dyq, dyk)
        dq, dk = torch.empty_like(dyq), torch.empty_like(dyk)
        bm, bk, n_blocks = dispatch.row_blocks(sizes[3], sizes[-1], tensors=2)
        dispatch.launched(_rope_qk_norm_bwd_kernel)[(n_blocks, 2)](
            dyq, dyk, kept_q, kept_k, rq, rk, turn, dq, dk, *sizes,
            NORM=norm, KEPT_Y=kept_y, BM=bm, BK=bk, **dispatch.LAUNCH,
        )  # fmt: skip
        return dq, dk

    def _sizes(q: Tensor, k: Tensor) -> tuple[int, ...]:
        """T, H, G, rows of q, rows of k, K."""
        _, T, H, K = q.shape
        return T, H, k.shape[2], q.numel() // K, k.numel() // K, K

    def _keep(ctx, inputs, output) -> None:
        dispatch.only_real_gradients(ctx, *output[:2])
        (q, k, turn, ctx.norm, _), (yq, yk, rq, rk) = inputs, output
        ctx.kept_y = q.shape[-1] >= _KEEP_Y_FROM
        kept = () if not ctx.norm else (yq, yk) if ctx.kept_y else (q, k)
        ctx.save_for_backward(rq, rk, turn, *kept)

    def _gradient(ctx, dyq: Tensor | None, dyk: Tensor | None, drq: None, drk: None):
        rq, rk, turn, *kept = ctx.saved_tensors
        dyq, dyk = dispatch.or_zeros(ctx, dyq, dyk)
        kept = kept or (dyq, dyk)  # not read without the norm
        found = _rope_qk_norm_bwd(dyq, dyk, *kept, rq, rk, turn, ctx.norm, ctx.kept_y)
        return *found, None, None, None

    _rope_qk_norm.register_autograd(_gradient, setup_context=_keep)


def rope_qk_norm(
    q: Tensor,
    k: Tensor,
    turn: Tensor,
    *,
    norm: bool = True,
    eps: float | None = None,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Give queries and keys their positions and unit root mean square.

    Args:
        q: queries, (B, T, H, K), K even.
        k: keys, (B, T, G, K), G <= H.
        turn: cosine and sine of each angle, (context, K/2, 2), context >= T; gets no gradient.
        norm: False only turns.
        eps: added to the mean square; None: the epsilon of the precision computed in.

    Returns:
        (q, k), shapes and dtypes as given.

    Raises:
        ValueError: if shapes disagree, or the kernel was asked for and cannot run.
    """
    fits = (
        q.ndim == k.ndim == 4
        and q.shape[:2] == k.shape[:2]
        and k.shape[2] <= q.shape[2]
        and turn.ndim == 3
        and q.shape[-1] == k.shape[-1] == 2 * turn.shape[1] == turn.shape[1] * turn.shape[2]
        and q.shape[1] <= turn.shape[0]
    )
    if not fits:
        raise ValueError(
            f"rope_qk_norm: q {tuple(q.shape)} must be (B, T, H, K), k {tuple(k.shape)} "
            f"(B, T, G, K) with G <= H, and turn {tuple(turn.shape)} (>= T, K/2, 2)"
        )
    if dispatch.use_triton("rope_qk_norm", impl, q, k, width=q.shape[-1]):
        eps = torch.finfo(torch.float32).eps if eps is None else eps
        return _rope_qk_norm(q, k, turn, norm, eps)[:2]
    q, k = rotate(q, turn), rotate(k, turn)
    return (rms_norm(q, None, eps), rms_norm(k, None, eps)) if norm else (q, k)
