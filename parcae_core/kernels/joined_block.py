"""A whole pre-norm block on a CPU: its forward, and its backward by hand, as one node of autograd.

    s = x + W_out attention(rope_qk_norm(W_q u), rope_qk_norm(W_k u), value_gate(W_v u)),  u = RMSNorm(x)
    y = s + W_down 0.5 relu(W_up RMSNorm(s))^2

x, y (B, T, D), H heads, K = D / H. The definition is `parcae_core.model.layers.Block.forward`; this makes
the same sums in the same order (tests/parcae_core/kernels/test_joined_block.py). A block of a nano
model is some hundred operations on tensors that fit a cache, so that calling them costs as much as
their arithmetic: here q and k are one product and are turned and normed together, residual sums are
made by the products, weights are looked up once a forward pass, and autograd sees one node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from parcae_core.kernels.dispatch import apply
from parcae_core.kernels.rms_norm import inverse_rms, number, rms_norm_backward

_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


Bound = Callable[[Tensor, Tensor | None], Tensor]


class BlockWeights(NamedTuple):
    """Of one block, for one forward pass."""

    norm_attn: Tensor  # (D,)
    qk: Tensor  # (2 D, D), those of q above those of k
    v: Tensor  # (D, D)
    out: Tensor  # (D, D)
    norm_mlp: Tensor  # (D,)
    up: Tensor  # (F, D)
    down: Tensor  # (D, F)
    gate: Tensor | None  # (H, channels that it reads), with value embeddings


class _JoinedBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, embedding: Tensor | None, turn: Tensor, eps: float, *weights: Tensor
    ) -> Tensor:
        norm_attn, qk, v, out, norm_mlp, up, down, gate = weights
        (B, T, D), H = x.shape, turn.shape[1] // 2
        rows = x.reshape(-1, D)
        r_attn = inverse_rms(rows, eps)
        u = torch.mul(rows, r_attn).mul_(norm_attn)
        pairs = torch.mm(u, qk.t()).view(B, T, 2 * H, -1, 2)  # of q's heads and of k's
        turned = torch.view_as_real(torch.view_as_complex(pairs) * turn).view(B, T, 2 * H, -1)
        r_heads = inverse_rms(turned, torch.finfo(x.dtype).eps)
        q, k = torch.mul(turned, r_heads).transpose(1, 2).split(H, 1)  # (B, H, T, K)
        values, opened = torch.mm(u, v.t()), None
        if gate is not None:
            opened = torch.mm(u[:, : gate.shape[1]], gate.t()).sigmoid_()  # (B*T, H)
            by_head = (-1, H, D // H)
            added = torch.mul(embedding.reshape(by_head), (2 * opened).unsqueeze(-1))
            values.view(by_head).add_(added)
        values = values.view(B, T, H, -1).transpose(1, 2)
        mixed, log_sums = _attention(q, k, values, 0.0, True)
        read = mixed.transpose(1, 2).reshape(-1, D)
        s = torch.addmm(rows, read, out.t())
        r_mlp = inverse_rms(s, eps)
        t = torch.mul(s, r_mlp).mul_(norm_mlp)
        hidden = torch.mm(t, up.t()).relu_()
        squared = torch.addcmul(number(0, x.dtype), hidden, hidden, value=0.5)
        y = torch.addmm(s, squared, down.t())
        ctx.save_for_backward(
            embedding, opened, rows, r_attn, u, turned, r_heads, q, k, values, mixed, log_sums, read,
            s, r_mlp, t, hidden, squared, turn, *weights,
        )  # fmt: skip
        return y.view(B, T, D)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor):
        (
            embedding, opened, rows, r_attn, u, turned, r_heads, q, k, values, mixed, log_sums, read,
            s, r_mlp, t, hidden, squared, turn, norm_attn, qk, v, out, norm_mlp, up, down, gate,
        ) = ctx.saved_tensors  # fmt: skip
        (B, T, D), H = dy.shape, turn.shape[1] // 2
        dy = dy.reshape(-1, D)
        d_hidden = torch.mm(dy, down).mul_(hidden)
        d_down = torch.mm(dy.t(), squared)
        d_up = torch.mm(d_hidden.t(), t)
        ds, d_norm_mlp = rms_norm_backward(torch.mm(d_hidden, up), s, norm_mlp, r_mlp)
        ds.add_(dy)
        d_out = torch.mm(ds.t(), read)
        d_mixed = torch.mm(ds, out).view(B, T, H, -1).transpose(1, 2)
        dq, dk, dv = _attention_backward(d_mixed, q, k, values, mixed, log_sums, 0.0, True)
        d_heads = torch.cat([dq.transpose(1, 2), dk.transpose(1, 2)], 2)  # (B, T, 2 H, K)
        d_turned, _ = rms_norm_backward(d_heads, turned, None, r_heads)
        d_pairs = torch.view_as_complex(d_turned.view(B, T, 2 * H, -1, 2)) * turn.conj_physical()
        d_qk = torch.view_as_real(d_pairs).view(-1, 2 * D)
        dv = dv.transpose(1, 2).reshape(-1, D)
        du, d_gate, d_embedding = _gate_backward(dv, u, embedding, opened, gate)
        # in the order in which autograd sums: the last product of the forward comes first
        du = torch.mm(dv, v) if du is None else torch.addmm(du, dv, v, out=du)
        torch.addmm(du, d_qk[:, D:], qk[D:], out=du)
        torch.addmm(du, d_qk[:, :D], qk[:D], out=du)
        dx, d_norm_attn = rms_norm_backward(du, rows, norm_attn, r_attn)
        dx.add_(ds)
        return (
            dx.view(B, T, D), d_embedding, None, None, d_norm_attn, torch.mm(d_qk.t(), u),
            torch.mm(dv.t(), u), d_out, d_norm_mlp, d_up, d_down, d_gate,
        )  # fmt: skip


def _gate_backward(
    dv: Tensor, u: Tensor, embedding: Tensor | None, opened: Tensor | None, gate: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, of the gate's weight and of the value embeddings, where there is a gate."""
    if embedding is None or opened is None or gate is None:
        return None, None, None
    by_head = dv.view(*opened.shape, -1)  # (B*T, H, K)
    d_scale = torch.mul(by_head, embedding.reshape(by_head.shape)).sum(-1)
    d_logits = torch.ops.aten.sigmoid_backward(d_scale.mul_(2), opened)
    d_embedding = torch.mul(by_head, (2 * opened).unsqueeze(-1)).view(embedding.shape)
    width = gate.shape[1]
    du = torch.mm(d_logits, gate)
    du = torch.nn.functional.pad(du, (0, u.shape[1] - width)) if width < u.shape[1] else du
    return du, torch.mm(d_logits.t(), u[:, :width]), d_embedding


def bind(weights: BlockWeights, turn: Tensor, eps: float) -> Bound:
    """The block as a function of its input and of its value embeddings.

    Args:
        turn: rotations of every position for the heads of q and of k, complex, (T, 2 H, K / 2).
        eps: of the two norms with weights.
    """

    def run(x: Tensor, embedding: Tensor | None) -> Tensor:
        return apply(_JoinedBlock, x, embedding, turn, eps, *weights)

    return run


def joins(x: Tensor) -> bool:
    """Whether a block of x may run joined: float32 or float64 on a CPU, neither cast nor compiled."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
