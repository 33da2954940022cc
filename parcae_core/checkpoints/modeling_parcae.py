"""A Parcae language model for the transformers library: prelude -> core, looped -> coda.

    e      = RMS(prelude(ids))
    h_t+1  = core(A_bar * h_t + B_bar e)          t = 0..num_loops - 1, h_0 a fixed draw per position
    logits = head(RMS(coda(C h_T)))

This file stands alone beside the weights that `parcae export` wrote:

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    model(ids, num_loops=16)
    model.generate(ids, num_loops=4)

`num_loops` is that of the generation config when it is left out. The cache holds the core's keys and
values of every loop step, so all calls that share a cache use one number of loops.

B batch, N new tokens, T all tokens so far, D model width, S state width, H heads, G key-value heads, K head
width. Source: Parcae (arXiv:2604.12946).
"""

from __future__ import annotations

import math
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# What the output and `forward` call the keys and values; transformers 5 renamed them
_CACHE = (
    "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
)


_SHAPE = {  # every width written out
    "vocab_size": 259,
    "context": 128,
    "d_model": 32,
    "d_state": 32,
    "n_head": 2,
    "n_kv_head": 2,
    "core_n_head": 2,
    "core_n_kv_head": 2,
    "d_ff": 128,
    "core_d_ff": 128,
    "n_prelude": 1,
    "n_core": 1,
    "n_coda": 1,
    "injection": "diagonal",  # diagonal, diagonal-zoh, concat, add; none: a fixed-depth Transformer
    "prelude_norm": True,
    "readout": True,
    "mlp": "relu2",  # or swiglu
    "residual_norm": False,
    "qk_norm": True,
    "value_layers": (),  # with a table of value embeddings
    "value_gate_width": 32,
    "separate_head": False,  # else the embedding is the head
    "rope_base": 50_000.0,
    "norm_eps": 1e-5,
    "num_loops": 1,
    "state_key": 0,  # of the generator that draws h_0
}


class ParcaeConfig(PretrainedConfig):
    """Shape of the model: what `_SHAPE` names, by name."""

    model_type = "parcae"
    attribute_map = {  # noqa: RUF012 (as every configuration of transformers has it)
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "max_position_embeddings": "context",
    }

    def __init__(self, **kwargs) -> None:
        shape = {name: kwargs.pop(name, default) for name, default in _SHAPE.items()}
        kwargs["tie_word_embeddings"] = False  # a shared head is read where it lies, not copied
        super().__init__(**kwargs)
        for name, value in shape.items():
            setattr(self, name, value)
        self.value_layers = list(self.value_layers)
        self.num_hidden_layers = self.n_prelude + self.n_core + self.n_coda


def widened(x: Tensor) -> Tensor:
    """x in float32 or better."""
    return x if x.dtype == torch.float64 else x.float()


def rms(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x over its root mean square, in float32 or better."""
    wide = widened(x)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide if weight is None else wide * weight).to(x.dtype)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return rms(x, self.weight, self.eps)


class Reading:
    """Where the new tokens stand, what they may attend to, and what was read before them."""

    def __init__(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor | None, cache: DynamicCache | None
    ) -> None:
        n_new, self.cache = ids.shape[1], cache
        n_before = cache.get_seq_length() if cache is not None else 0
        index = torch.arange(n_before, n_before + n_new, device=ids.device)
        if mask is not None and bool(mask.all()):
            mask = None
        if positions is None and mask is None:
            positions = index.expand(len(ids), -1)
        elif positions is None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -n_new:]
        self.positions = positions.expand(len(ids), -1)  # (B, N)
        self.is_causal = mask is None and not n_before
        self.mask = None  # (B or 1, 1, N, T), True where attention is allowed
        if mask is not None or (n_before and n_new > 1):
            keys = torch.arange(n_before + n_new, device=ids.device)
            self.mask = (keys <= index[:, None])[None, None]
            if mask is not None:
                # a padded token sees itself: a softmax over nothing is no number
                self.mask = (self.mask & mask.bool()[:, None, None]) | (keys == index[:, None])

    def turn(self, x: Tensor, base: float) -> Tensor:
        """Rotate the interleaved pairs of x, (B, N, H, K), by position * base^(-2i/K)."""
        d_head = x.shape[-1]
        exponent = -torch.arange(0, d_head, 2, device=x.device) / d_head
        angle = (self.positions[..., None].float() * base**exponent)[:, :, None]
        a, b = widened(x).unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = torch.view_as_real(torch.polar(torch.ones_like(angle), angle)).unbind(-1)
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ParcaeConfig, width: int, n_head: int, n_kv_head: int, gated: bool):
        super().__init__()
        kv = width // n_head * n_kv_head
        self.n_head, self.n_kv_head = n_head, n_kv_head
        self.base, self.qk_norm = config.rope_base, config.qk_norm
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv, bias=False)
        self.v = nn.Linear(width, kv, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        gate = config.value_gate_width
        self.value_gate = nn.Linear(gate, n_kv_head, bias=False) if gated else None

    def forward(self, u: Tensor, values: Tensor | None, reading: Reading, place: int) -> Tensor:
        q = self.q(u).unflatten(-1, (self.n_head, -1))  # (B, N, H, K)
        k = self.k(u).unflatten(-1, (self.n_kv_head, -1))
        v = self.v(u).unflatten(-1, (self.n_kv_head, -1))
        if self.value_gate is not None:
            gate = 2 * torch.sigmoid(self.value_gate(u[..., : self.value_gate.in_features]))
            v = v + gate[..., None] * values.view_as(v)
        q, k = reading.turn(q, self.base), reading.turn(k, self.base)
        if self.qk_norm:
            eps = torch.finfo(widened(q).dtype).eps
            q, k = rms(q, None, eps), rms(k, None, eps)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, N, K)
        if reading.cache is not None:
            k, v = reading.cache.update(k, v, place)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=reading.mask,
            is_causal=reading.is_causal,
            enable_gqa=self.n_head != self.n_kv_head,
        )
        return self.out(y.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    """down(0.5 relu(up u)^2), or down(silu(gate u) * up u)."""

    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False) if gated else None
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        up = self.up(u)
        return self.down(
            0.5 * F.relu(up).square() if self.gate is None else F.silu(self.gate(u)) * up
        )


class Block(nn.Module):
    def __init__(self, config: ParcaeConfig, layer: int) -> None:
        super().__init__()
        core = 0 <= layer - config.n_prelude < config.n_core
        width = config.d_state if core else config.d_model
        heads = (
            (config.core_n_head, config.core_n_kv_head)
            if core
            else (config.n_head, config.n_kv_head)
        )
        hidden, eps = config.core_d_ff if core else config.d_ff, config.norm_eps
        self.norm_attn = Norm(width, eps)
        self.attn = Attention(config, width, *heads, gated=layer in config.value_layers)
        self.norm_mlp = Norm(width, eps)
        self.mlp = Mlp(width, hidden, gated=config.mlp == "swiglu")
        after = config.residual_norm
        self.norm_after_attn = Norm(width, eps) if after else nn.Identity()
        self.norm_after_mlp = Norm(width, eps) if after else nn.Identity()

    def forward(self, x: Tensor, values: Tensor | None, reading: Reading, place: int) -> Tensor:
        x = self.norm_after_attn(x + self.attn(self.norm_attn(x), values, reading, place))
        return self.norm_after_mlp(x + self.mlp(self.norm_mlp(x)))


class Injection(nn.Module):
    """How the prelude's output e enters the state: `drive(e)` once, `carry` in every loop step."""

    def __init__(self, config: ParcaeConfig) -> None:
        super().__init__()
        self.kind, s, d = config.injection, config.d_state, config.d_model
        if self.kind.startswith("diagonal"):
            self.a_log = nn.Parameter(torch.zeros(s))
            self.dt_bias = nn.Parameter(torch.zeros(s))
            self.B = nn.Parameter(torch.zeros(s, d))
        elif self.kind == "concat":
            self.weight = nn.Parameter(torch.zeros(s, s + d))

    def drive(self, e: Tensor) -> tuple[Tensor | None, Tensor]:
        """(A_bar (S,), what is added (B, N, S))."""
        if self.kind == "add":
            return None, e
        if self.kind == "concat":
            return None, F.linear(e, self.weight[:, self.weight.shape[0] :])
        dt = F.softplus(widened(self.dt_bias).clamp(min=-40.0, max=math.exp(40.0)))
        rate = (dt * widened(self.a_log).clamp(-40.0, 40.0).exp()).clamp(1e-6, 80.0)
        gain = dt * (-torch.expm1(-rate) / rate) if self.kind == "diagonal-zoh" else dt
        added = gain * F.linear(e, self.B)
        return torch.exp(-rate).to(e.dtype), added.to(e.dtype)

    def carry(self, h: Tensor, drive: tuple[Tensor | None, Tensor]) -> Tensor:
        a_bar, added = drive
        if self.kind == "concat":
            return F.linear(h, self.weight[:, : self.weight.shape[0]]) + added
        return h + added if a_bar is None else a_bar * h + added


class ParcaeForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with its head."""

    config_class = ParcaeConfig
    _supports_sdpa = True

    def __init__(self, config: ParcaeConfig) -> None:
        super().__init__(config)
        c, p, q = config, config.n_prelude, config.n_prelude + config.n_core
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.prelude = nn.ModuleList(Block(c, i) for i in range(p))
        self.core = nn.ModuleList(Block(c, i) for i in range(p, q))
        self.coda = nn.ModuleList(Block(c, i) for i in range(q, c.num_hidden_layers))
        self.value_embeddings = nn.ModuleDict(
            {str(i): nn.Embedding(c.vocab_size, self._kv_width(i)) for i in c.value_layers}
        )
        self.norm_prelude = Norm(c.d_model, c.norm_eps) if c.prelude_norm else nn.Identity()
        self.norm_final = Norm(c.d_model, c.norm_eps)
        if c.injection != "none":
            self.injection = Injection(c)
        if c.readout:
            self.readout = nn.Linear(c.d_state, c.d_model, bias=False)
        self.head = nn.Linear(c.d_model, c.vocab_size, bias=False) if c.separate_head else None
        self._h0: Tensor | None = None
        self.post_init()

    def _kv_width(self, layer: int) -> int:
        c = self.config
        if 0 <= layer - c.n_prelude < c.n_core:
            return c.d_state // c.core_n_head * c.core_n_kv_head
        return c.d_model // c.n_head * c.n_kv_head

    def initial_state(self, positions: Tensor) -> Tensor:
        """h_0 at the positions (B, N), (B, N, S): normal, cut at 3 sigma, from the config's key."""
        c = self.config
        if self._h0 is None or self._h0.device != positions.device:
            generator = torch.Generator().manual_seed(c.state_key)
            uniform = torch.rand(1, c.context, c.d_state, generator=generator)[0]
            edge = math.erf(3 / math.sqrt(2))
            normal = torch.erfinv((2 * uniform - 1) * edge)
            self._h0 = (normal * (math.sqrt(2 / (5 * c.d_model)) * math.sqrt(2))).to(
                positions.device
            )
        return self._h0[positions]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_loops: int | None = None,
        logits_to_keep: int = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits (B, N, vocab_size) of the new tokens; with `labels` (B, N) the loss, in nats per token.

        Raises:
            ValueError: loops below 1, other than 1 for a Transformer, or a text beyond the context.
        """
        c = self.config
        loops = self._loops(num_loops)
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        reading = Reading(input_ids, attention_mask, position_ids, cache)
        if int(reading.positions.max()) >= c.context:
            raise ValueError(
                f"position {int(reading.positions.max())} lies beyond the context of {c.context} tokens"
            )
        values = {i: self.value_embeddings[str(i)](input_ids) for i in c.value_layers}
        core, coda = c.n_prelude, c.n_prelude + c.n_core
        x = self.embedding(input_ids)
        for i, block in enumerate(self.prelude):
            x = block(x, values.get(i), reading, i)
        place = core
        if c.injection == "none":
            h = x
        else:
            drive = self.injection.drive(self.norm_prelude(x))
            h = self.initial_state(reading.positions).to(x.dtype)
        for _ in range(loops):
            h = h if c.injection == "none" else self.injection.carry(h, drive)
            for i, block in enumerate(self.core, core):
                h = block(h, values.get(i), reading, place)
                place += 1
        x = self.readout(h) if c.readout else h
        for i, block in enumerate(self.coda, coda):
            x = block(x, values.get(i), reading, place + i - coda)
        x = self.norm_final(x)[:, -logits_to_keep:] if logits_to_keep else self.norm_final(x)
        logits = F.linear(x, self.embedding.weight if self.head is None else self.head.weight)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:])
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE: cache})

    def _loops(self, num_loops: int | None) -> int:
        if num_loops is None:
            num_loops = getattr(self.generation_config, "num_loops", None) or self.config.num_loops
        if num_loops < 1 or (self.config.injection == "none" and num_loops != 1):
            raise ValueError(
                f"num_loops is {num_loops}; it must be 1 or more, and 1 for a fixed-depth Transformer"
            )
        return num_loops

    def _prepare_generation_config(self, *args, **kwargs):
        """Hand the generation config's `num_loops` to `forward`; transformers would keep it there."""
        config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        model_kwargs["num_loops"] = self._loops(getattr(config, "num_loops", None))
        return config, model_kwargs

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: that cache has one place a layer, and a looped layer needs one a loop step."""
        return False

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Linear | None:
        return self.head
