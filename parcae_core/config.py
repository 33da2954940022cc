"""Frozen model configuration. Free of torch, so that planning a sweep is instant.

Letters used in docstrings of this room: B batch, T time, D d_model, S d_state, H heads,
K d_head, V vocabulary, F d_ff.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from operator import ge
from typing import Any, Literal, get_args

Injection = Literal["diagonal", "diagonal-zoh", "concat", "add", "none"]
Mlp = Literal["relu2", "swiglu"]

# Far above any model that exists; a shape beyond them, as in a file from elsewhere, would be counted,
# laid out or allocated for ever
MAX_WIDTH, MAX_CONTEXT, MAX_VOCAB, MAX_LAYERS = 1 << 20, 1 << 20, 1 << 24, 1_000
_AT_MOST = {
    "vocab_size": MAX_VOCAB,
    "context": MAX_CONTEXT,
    **dict.fromkeys(("n_prelude", "n_core", "n_coda"), MAX_LAYERS),
    **dict.fromkeys(("d_model", "d_ff", "d_state", "core_d_ff", "value_gate_width"), MAX_WIDTH),
    **dict.fromkeys(("n_head", "n_kv_head", "core_n_head"), MAX_WIDTH),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of one model: prelude -> core, looped -> coda; or a plain Transformer.

    `injection` says how the looped state meets the prelude's output e:
      diagonal      A_bar * h + dt * (B e), the paper's (Euler for B)
      diagonal-zoh  A_bar * h + (exp(dt A) - 1)/A * (B e), exact zero-order hold for B
      concat        W [h; e], the RDM/Huginn baseline; its A_bar is unconstrained
      add           h + e, marginally stable
      none          no loop at all: the fixed-depth Transformer of the same layers
    Source: Parcae (arXiv:2604.12946) section "Architecture".
    """

    vocab_size: int
    context: int  # tokens a sequence may have
    d_model: int
    n_head: int
    d_ff: int
    n_prelude: int
    n_core: int
    n_coda: int
    n_kv_head: int | None = None  # None: as many as n_head
    d_state: int | None = None  # width of the looped state and the core; None: d_model
    core_n_head: int | None = None  # heads (and key-value heads) of the core; None: as outside
    core_d_ff: int | None = None  # None: d_ff scaled by d_state / d_model
    injection: Injection = "diagonal"
    prelude_norm: bool = True
    readout: bool = True  # C, from the state to the coda; RDM has none
    mlp: Mlp = "relu2"
    residual_norm: bool = False  # RDM's extra norms, after attention and after the MLP
    qk_norm: bool = True
    value_embeddings: bool = True
    tie_embeddings: bool = True
    rope_base: float = 50_000.0
    norm_eps: float = 1e-5
    value_gate_width: int = 32  # leading channels of the normed input that feed the gate

    def __post_init__(self) -> None:
        # heads of keys and of the core: see `_check_heads`
        counts = [name for name in _AT_MOST if name not in ("n_kv_head", "core_n_head")]
        check_fields(self, counts, lambda v: v >= 1, "be >= 1")
        for name, most in _AT_MOST.items():
            check_fields(self, (name,), partial(ge, most), f"be <= {most}")
        positive = ("rope_base", "norm_eps")
        check_fields(self, positive, lambda v: 0 < v < math.inf, "be > 0 and finite")
        for name, kind in (("injection", Injection), ("mlp", Mlp)):
            value, known = getattr(self, name), get_args(kind)
            _require(value in known, f"{name} is {value!r}; it must be one of {', '.join(known)}")
        self._check_heads()
        _require(
            self.readout or self.state_width == self.d_model,
            f"readout=False hands a state {self.state_width} wide to a coda {self.d_model} wide; "
            "keep the readout or use one width",
        )
        _require(
            not self.is_transformer or self.state_width == self.d_model,
            f"d_state={self.d_state} needs a looped state, and injection='none' has none; "
            "leave d_state out",
        )
        _require(
            self.injection != "add" or self.state_width == self.d_model,
            f"injection='add' adds e ({self.d_model} wide) to the state ({self.state_width} wide); "
            "give them one width or use injection='diagonal'",
        )

    def _check_heads(self) -> None:
        for layer in (0, self.n_prelude):
            width, heads = self.layer_width(layer), self.layer_heads(layer)
            kv = self.layer_kv_heads(layer)
            part = self.layer_part(layer)
            _require(
                heads >= 1 and 1 <= kv <= heads and heads % kv == 0,
                f"{part}: n_kv_head={kv} must divide n_head={heads}",
            )
            _require(
                width >= 1 and width % heads == 0 and (width // heads) % 2 == 0,
                f"{part}: width {width} over {heads} heads must give a whole, even head width "
                "(rotary embeddings turn pairs)",
            )
            _require(
                not self.value_embeddings or width >= self.value_gate_width,
                f"{part}: width {width} is narrower than value_gate_width={self.value_gate_width}; "
                "lower it or set value_embeddings to false",
            )

    @property
    def is_transformer(self) -> bool:
        """True for the fixed-depth baseline, whose layers all run exactly once."""
        return self.injection == "none"

    @property
    def has_prelude_norm(self) -> bool:
        return self.prelude_norm and not self.is_transformer

    @property
    def has_readout(self) -> bool:
        return self.readout and not self.is_transformer

    @property
    def state_width(self) -> int:
        """Width S of the looped state and of the core's layers."""
        return self.d_model if self.d_state is None else self.d_state

    @property
    def n_layers(self) -> int:
        """Unique layers; a core layer counts once however often it is looped."""
        return self.n_prelude + self.n_core + self.n_coda

    def layer_width(self, layer: int) -> int:
        """Residual width of unique layer `layer` (0-based, prelude first)."""
        return self.state_width if self.layer_part(layer) == "core" else self.d_model

    def layer_heads(self, layer: int) -> int:
        in_core = self.layer_part(layer) == "core"
        return self.core_n_head if in_core and self.core_n_head is not None else self.n_head

    def layer_kv_heads(self, layer: int) -> int:
        if self.layer_part(layer) == "core" and self.core_n_head is not None:
            return self.core_n_head
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    def layer_ff(self, layer: int) -> int:
        """Hidden width F of a layer's MLP."""
        if self.layer_part(layer) != "core":
            return self.d_ff
        if self.core_d_ff is not None:
            return self.core_d_ff
        return self.d_ff * self.state_width // self.d_model

    def layer_part(self, layer: int) -> Literal["prelude", "core", "coda"]:
        if layer < self.n_prelude:
            return "prelude"
        return "core" if layer < self.n_prelude + self.n_core else "coda"

    def has_value_embedding(self, layer: int) -> bool:
        """Alternating unique layers, the last one always. Source: REFERENCE.md, "Forward"."""
        return self.value_embeddings and layer % 2 == (self.n_layers - 1) % 2

    def replace(self, **changes: Any) -> ModelConfig:
        """A checked copy with some fields changed."""
        return ModelConfig(**(as_dict(self) | changes))


def as_dict(config: Any) -> dict[str, Any]:
    """Fields of a slotted dataclass, one level deep."""
    return {f.name: getattr(config, f.name) for f in fields(config)}


def check_fields(
    config: Any, names: Iterable[str], holds: Callable[[Any], bool], needed: str
) -> None:
    """Raise ValueError for the first field that is given and of which something does not hold."""
    for name in names:
        value = getattr(config, name)
        _require(value is None or holds(value), f"{name} is {value}; it must {needed}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
