"""The parts of a transformer block: rotary embeddings, attention, MLP, block.

B batch, T time, D width of this layer, H heads, G key-value heads, K head width, F hidden width.
No biases anywhere. Source: Parcae (arXiv:2604.12946), "Architecture"; REFERENCE.md, "Forward".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parcae_core.accounting.params import kv_width
from parcae_core.config import ModelConfig
from parcae_core.kernels.dispatch import product_dtype
from parcae_core.kernels.joined_block import BlockWeights, Bound, bind, joins
from parcae_core.kernels.relu_squared import relu_squared
from parcae_core.kernels.relu_squared_mlp import relu_squared_mlp
from parcae_core.kernels.residual_norm import residual_norm
from parcae_core.kernels.rms_norm import RMSNorm
from parcae_core.kernels.rope_qk_norm import rope_qk_norm
from parcae_core.kernels.value_gate import value_gate


class Linear(nn.Linear):
    """A linear layer without values: `build_model` fills every weight exactly once."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """A table without values: `build_model` fills every weight exactly once."""

    def reset_parameters(self) -> None:
        pass


class Rotary(nn.Module):
    """Table of the rotations of interleaved channel pairs by position * base^(-2i/K)."""

    def __init__(self, d_head: int, context: int, base: float) -> None:
        super().__init__()
        self.shape, self.base = (context, d_head), base
        # cosines and sines (context, K/2, 2), kept out of the state dict: the config has it all
        self.register_buffer("turn", torch.empty(context, d_head // 2, 2), persistent=False)
        # of `of_heads`: the table that it was made from, and what it gave
        self._of_heads: tuple[Tensor, Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Fill the table on the device it is on."""
        context, d_head = self.shape
        exponent = -torch.arange(0, d_head, 2, device=self.turn.device) / d_head
        position = torch.arange(context, device=self.turn.device, dtype=torch.float32)
        angle = torch.outer(position, self.base**exponent)
        self.turn = torch.view_as_real(torch.polar(torch.ones_like(angle), angle)).clone()

    def of_heads(self, n_heads: int, seq_len: int) -> Tensor:
        """The first rotations as complex numbers, once for each head, (seq_len, n_heads, K/2)."""
        # made once: of all that are asked for, many times a step, the shape is one
        kept = self._of_heads
        if kept is None or kept[0] is not self.turn or kept[1].shape[:2] != (seq_len, n_heads):
            turn = torch.view_as_complex(self.turn[:seq_len, None])
            kept = self._of_heads = self.turn, turn.expand(-1, n_heads, -1).contiguous()
        return kept[1]


class KeyValues:
    """Keys and values of the tokens that one layer has read, so that the next ones read only themselves.

    A layer of the core has one for every loop step.
    """

    def __init__(self) -> None:
        self.k: Tensor | None = None  # (B, T, G, K)
        self.v: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all tokens, after the new ones' are added."""
        if self.k is not None and self.v is not None:
            k, v = torch.cat([self.k, k], 1), torch.cat([self.v, v], 1)
        self.k, self.v = k, v
        return k, v

    @property
    def n_read(self) -> int:
        return 0 if self.k is None else self.k.shape[1]


class Attention(nn.Module):
    """Causal attention with rotary positions, QK-norm and, on some layers, gated value embeddings."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.impl = "torch"  # of the ops; see Parcae.use
        width, kv = config.layer_width(layer), kv_width(config, layer)
        self.n_head, self.n_kv_head = config.layer_heads(layer), config.layer_kv_heads(layer)
        self.qk_norm = config.qk_norm
        self.q = Linear(width, width, bias=False)
        self.k = Linear(width, kv, bias=False)
        self.v = Linear(width, kv, bias=False)
        self.out = Linear(width, width, bias=False)
        self.gate_width = config.value_gate_width
        self.value_gate = (
            Linear(self.gate_width, self.n_kv_head, bias=False)
            if config.has_value_embedding(layer)
            else None
        )

    def forward(
        self,
        u: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        past: KeyValues | None = None,
    ) -> Tensor:
        """Attend over u.

        Args:
            u: normed input, (B, T, D).
            value_embedding: this layer's table looked up at the tokens, (B, T, G*K), or None.
            past: of the tokens before, which u's attend to as well; u is then either the first tokens
                or one further token.
        """
        q, k, v = self._project(u)
        q = q.unflatten(-1, (self.n_head, -1))  # (B, T, H, K)
        k = k.unflatten(-1, (self.n_kv_head, -1))  # (B, T, G, K)
        v = v.unflatten(-1, (self.n_kv_head, -1))
        if self.value_gate is not None:
            gate = self.value_gate(u[..., : self.gate_width])  # (B, T, G)
            v = value_gate(v, gate, value_embedding, impl=self.impl)
        turn = rotary.turn if past is None else rotary.turn[past.n_read :]
        q, k = rope_qk_norm(q, k, turn, norm=self.qk_norm, impl=self.impl)
        if past is not None:
            k, v = past.extend(k, v)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),  # (B, H, T, K)
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=past is None or q.shape[1] == k.shape[1],
            enable_gqa=self.n_kv_head != self.n_head,
        )
        return self.out(y.transpose(1, 2).flatten(-2))

    def _project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of u; with kernels, which read parts of rows, by one product."""
        if self.impl == "torch":
            return self.q(u), self.k(u), self.v(u)
        parts = (self.q, self.k, self.v)
        together = F.linear(u, torch.cat([part.weight for part in parts]))
        return together.split([part.out_features for part in parts], -1)


class ReLU2Mlp(nn.Module):
    """W_down(0.5 * relu(W_up u)^2)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.impl, self.joined = "torch", False
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        if self.joined:
            return relu_squared_mlp(u, self.up.weight, self.down.weight, impl=self.impl)
        return self.down(relu_squared(self.up(u), impl=self.impl))


class SwiGluMlp(nn.Module):
    """W_down(silu(W_gate u) * W_up u)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden, bias=False)
        self.up = Linear(width, hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(u)) * self.up(u))


class Block(nn.Module):
    """Pre-norm transformer block; with `residual_norm` the residual sums are normed as well (RDM)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        width, hidden = config.layer_width(layer), config.layer_ff(layer)
        self.norm_attn = RMSNorm(width, config.norm_eps)
        self.attn = Attention(config, layer)
        self.norm_mlp = RMSNorm(width, config.norm_eps)
        self.mlp = (SwiGluMlp if config.mlp == "swiglu" else ReLU2Mlp)(width, hidden)
        after = config.residual_norm
        self.norm_after_attn = RMSNorm(width, config.norm_eps) if after else nn.Identity()
        self.norm_after_mlp = RMSNorm(width, config.norm_eps) if after else nn.Identity()
        self.joined = False  # see Parcae.use
        self.can_join = (
            config.qk_norm
            and self.attn.n_kv_head == self.attn.n_head
            and isinstance(self.mlp, ReLU2Mlp)
            and not after
        )

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        past: KeyValues | None = None,
    ) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        if self.joined and past is None and joins(x):
            return self.bind(rotary, x.shape[1])(x, value_embedding)
        x = self.norm_after_attn(x + self.attn(self.norm_attn(x), rotary, value_embedding, past))
        return self.norm_after_mlp(x + self.mlp(self.norm_mlp(x)))

    def bind(self, rotary: Rotary, seq_len: int) -> Bound:
        """`forward` of whole sequences as one operation, with the weights as they are now."""
        attn, mlp = self.attn, self.mlp
        gate = None if attn.value_gate is None else attn.value_gate.weight
        weights = BlockWeights(
            self.norm_attn.weight, torch.cat([attn.q.weight, attn.k.weight]), attn.v.weight,
            attn.out.weight, self.norm_mlp.weight, mlp.up.weight, mlp.down.weight, gate,
        )  # fmt: skip
        return bind(weights, rotary.of_heads(2 * attn.n_head, seq_len), self.norm_attn.eps)

    def fused(
        self,
        x: Tensor,
        u: Tensor,
        rotary: Rotary,
        value_embedding: Tensor | None,
        then: RMSNorm | None,
    ) -> tuple[Tensor, Tensor]:
        """`forward` with every norm joined to the sum before it.

        Args:
            u: `norm_attn` of x, (B, T, D).
            then: the norm that reads the output next.

        Returns:
            The output and `then` of it (itself for None), both (B, T, D).
        """
        x, u = self._add(
            x, self.attn(u, rotary, value_embedding), self.norm_after_attn, self.norm_mlp
        )
        return self._add(x, self.mlp(u), self.norm_after_mlp, then)

    def _add(
        self, x: Tensor, delta: Tensor, after: nn.Module, then: RMSNorm | None
    ) -> tuple[Tensor, Tensor]:
        impl = self.attn.impl
        if isinstance(after, RMSNorm):
            _, x = residual_norm(x, delta, after.weight, after.eps, impl=impl)
            return x, x if then is None else then(x)
        if then is None:
            x = x + delta
            return x, x
        return residual_norm(x, delta, then.weight, then.eps, dtype=product_dtype(x), impl=impl)
