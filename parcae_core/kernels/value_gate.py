"""y = v + 2 * sigmoid(gate) * e, one gate per key-value head.

v, y (B, T, G, K), gate (B, T, G), e (B, T, G*K): the layer's value-embedding table looked up at the
tokens. The lookup stays outside, because one serves all loop steps. Computed in float32.
    dv = dy,   de = 2 * sigmoid(gate) * dy,
    dgate = 2 * sigmoid(gate) * (1 - sigmoid(gate)) * sum over K of dy * e.
torch makes the gate, the product and the sum in passes of their own and keeps the product's
factors; this makes one pass and keeps the logits.
Source: Parcae (arXiv:2604.12946), value embeddings; REFERENCE.md, "Forward".
"""

from __future__ import annotations

import torch
from torch import Tensor

from parcae_core.kernels import dispatch
from parcae_core.kernels.dispatch import Impl, tl, triton


def value_gate_ref(v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
    """The definition; the sum in the dtype of v."""
    scale = 2 * torch.sigmoid(gate)  # (B, T, G)
    return v + (scale.unsqueeze(-1) * embedding.view_as(v)).to(v.dtype)


if triton is not None:

    @triton.jit
    def _sigmoid(b_x):
        """In float32; the exponential never overflows."""
        b_e = tl.exp(-tl.abs(b_x))
        return tl.where(b_x < 0, b_e, 1.0) / (1 + b_e)

    @triton.jit
    def _value_gate_fwd_kernel(v, gate, e, y, G, TOKEN, M, K, BM: tl.constexpr, BK: tl.constexpr):
        rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
        cols = tl.arange(0, BK)
        mask = (rows < M)[:, None] & (cols < K)[None, :]
        offs = rows[:, None] * K + cols[None, :]
        b_gate = tl.load(gate + rows, mask=rows < M, other=0.0).to(tl.float32)
        b_scale = 2 * _sigmoid(b_gate)[:, None]
        at = (rows // G * TOKEN + rows % G * K)[:, None] + cols[None, :]
        b_v = tl.load(v + at, mask=mask, other=0.0).to(tl.float32)
        b_e = tl.load(e + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + offs, (b_v + b_scale * b_e).to(y.dtype.element_ty), mask=mask)

    @triton.jit
    def _value_gate_bwd_kernel(dy, gate, e, dgate, de, M, K, BM: tl.constexpr, BK: tl.constexpr):
        rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
        cols = tl.arange(0, BK)
        mask = (rows < M)[:, None] & (cols < K)[None, :]
        offs = rows[:, None] * K + cols[None, :]
        b_gate = tl.load(gate + rows, mask=rows < M, other=0.0).to(tl.float32)
        b_sigmoid = _sigmoid(b_gate)
        b_dy = tl.load(dy + offs, mask=mask, other=0.0).to(tl.float32)
        b_e = tl.load(e + offs, mask=mask, other=0.0).to(tl.float32)
        b_de = 2 * b_sigmoid[:, None] * b_dy
        tl.store(de + offs, b_de.to(de.dtype.element_ty), mask=mask)
        b_dgate = 2 * b_sigmoid * (1 - b_sigmoid) * tl.sum(b_dy * b_e, axis=1)
        tl.store(dgate + rows, b_dgate.to(dgate.dtype.element_ty), mask=rows < M)

    @dispatch.operator
    def _value_gate(v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
        (v, token), gate, embedding = (
            dispatch.head_rows(v),
            gate.contiguous(),
            embedding.contiguous(),
        )
        (G, K), M = v.shape[2:], gate.numel()
        y = torch.empty_like(v, memory_format=torch.contiguous_format)
        bm, bk, n_blocks = dispatch.row_blocks(M, K, tensors=2)
        dispatch.launched(_value_gate_fwd_kernel)[(n_blocks,)](
            v, gate, embedding, y, G, token, M, K, BM=bm, BK=bk, **dispatch.LAUNCH
        )
        return y

    @dispatch.operator
    def _value_gate_bwd(dy: Tensor, gate: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        dy, gate, embedding = dy.contiguous(), gate.contiguous(), embedding.contiguous()
        K, M = dy.shape[-1], gate.numel()
        dgate, de = torch.empty_like(gate), torch.empty_like(embedding)
        bm, bk, n_blocks = dispatch.row_blocks(M, K, tensors=2)
        dispatch.launched(_value_gate_bwd_kernel)[(n_blocks,)](
            dy, gate, embedding, dgate, de, M, K, BM=bm, BK=bk, **dispatch.LAUNCH
        )
        return dgate, de

    def _keep(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1:])

    def _gradient(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return dy, *_value_gate_bwd(dy, *ctx.saved_tensors)

    _value_gate.register_autograd(_gradient, setup_context=_keep)


def value_gate(v: Tensor, gate: Tensor, embedding: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Add gated value embeddings to the values of attention.

    Args:
        v: values, (B, T, G, K).
        gate: logits, (B, T, G).
        embedding: value embeddings of the tokens, (B, T, G*K).

    Returns:
        Values, shape and dtype of v.

    Raises:
        ValueError: if shapes disagree, or the kernel was asked for and cannot run.
    """
    if (
        v.ndim != 4
        or gate.shape != v.shape[:-1]
        or embedding.shape != (*v.shape[:2], v.shape[2] * v.shape[3])
    ):
        raise ValueError(
            f"value_gate: v {tuple(v.shape)} must be (B, T, G, K), gate {tuple(gate.shape)} "
            f"(B, T, G) and embedding {tuple(embedding.shape)} (B, T, G*K)"
        )
    if dispatch.use_triton("value_gate", impl, v, gate, embedding, width=v.shape[-1]):
        return _value_gate(v, gate, embedding)
    return value_gate_ref(v, gate, embedding)
