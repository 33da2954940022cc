"""Parameter counts in closed form, by component. Free of torch; a test compares with the module."""

from __future__ import annotations

from dataclasses import dataclass

from parcae_core.config import ModelConfig, as_dict


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamCount:
    """Parameters by component; a tied head is counted once, as the embedding."""

    embedding: int
    head: int  # 0 when tied
    value_embeddings: int  # the tables of all layers; their gates are in prelude/core/coda
    prelude: int
    core: int
    coda: int
    injection: int  # B, a_log, dt_bias; or W; 0 for add and none
    readout: int  # C
    norms: int  # final norm and prelude norm

    @property
    def total(self) -> int:
        return sum(as_dict(self).values())

    def unrolled(self, mean_recurrence: float) -> float:
        """N(mu) of the training law: total + (mu - 1) * core.

        The paper says only "unroll all loops"; this definition reproduces its held-out losses
        (+0.95 % at 140M, +0.26 % at 370M), 14 others do worse. Source: REFERENCE.md, "N(mu)".
        """
        return self.total + (mean_recurrence - 1) * self.core


def count_params(model: ModelConfig) -> ParamCount:
    """Parameters of `model` by component. Source: Parcae (arXiv:2604.12946), model table."""
    parts = {"prelude": 0, "core": 0, "coda": 0}
    tables = 0
    for layer in range(model.n_layers):
        parts[model.layer_part(layer)] += _layer_params(model, layer)
        if model.has_value_embedding(layer):
            tables += model.vocab_size * kv_width(model, layer)
    embedding = model.vocab_size * model.d_model
    return ParamCount(
        embedding=embedding,
        head=0 if model.tie_embeddings else embedding,
        value_embeddings=tables,
        injection=_injection_params(model),
        readout=model.d_model * model.state_width if model.has_readout else 0,
        norms=model.d_model * (1 + model.has_prelude_norm),
        **parts,
    )


def kv_width(model: ModelConfig, layer: int) -> int:
    """Width of a layer's keys, and of its values."""
    return model.layer_width(layer) // model.layer_heads(layer) * model.layer_kv_heads(layer)


def layer_matmul_params(model: ModelConfig, layer: int) -> int:
    """Weights of one layer that take part in a matrix product, its gate included."""
    width = model.layer_width(layer)
    attention = 2 * width * width + 2 * width * kv_width(model, layer)
    mlp = (3 if model.mlp == "swiglu" else 2) * width * model.layer_ff(layer)
    gate = 0
    if model.has_value_embedding(layer):
        gate = model.value_gate_width * model.layer_kv_heads(layer)
    return attention + mlp + gate


def _layer_params(model: ModelConfig, layer: int) -> int:
    norms = (4 if model.residual_norm else 2) * model.layer_width(layer)
    return layer_matmul_params(model, layer) + norms


def _injection_params(model: ModelConfig) -> int:
    d, s = model.d_model, model.state_width
    return {"concat": s * (s + d), "add": 0, "none": 0}.get(model.injection, s * d + 2 * s)
