"""FLOPs to train on one token, by component, under three counting rules. Closed form, torch-free.

paper  Appendix D of the paper: embeddings and value-embedding tables out, unembedding in, the
       declared mu_rec and mu_bwd. Budgets are in this rule unless a spec says otherwise.
code   as the published script counts: value-embedding tables billed as matmuls, tied head not.
exact  the matrix products that run, with the scheme's true expected depths; attention's backward
       pass recomputes the scores (FlashAttention), hence 2.5 times its forward.
All count a multiply-add as 2 and attention in full, without the causal half.
Source: Parcae (arXiv:2604.12946), App. D; REFERENCE.md, "FLOPs per token".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from parcae_core.accounting.params import count_params, layer_matmul_params
from parcae_core.config import ModelConfig, as_dict
from parcae_core.depth import DepthScheme

FlopsRule = Literal["paper", "code", "exact"]
FLOPS_RULES: tuple[FlopsRule, ...] = get_args(FlopsRule)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopCount:
    """FLOPs per trained token, forward and backward."""

    once: float  # what runs once per forward, head excluded
    core: float  # the looped layers, over all loop steps
    attention: float  # score and value products, all layers and loop steps
    head: float

    @property
    def total(self) -> float:
        return sum(as_dict(self).values())


def train_flops_per_token(
    model: ModelConfig, depth: DepthScheme | None, seq_len: int, rule: FlopsRule = "paper"
) -> FlopCount:
    """FLOPs to train on one token, forward and backward, by component.

    Args:
        depth: None for the fixed-depth Transformer.
        seq_len: tokens attended over.

    Raises:
        ValueError: if the rule is unknown, or a looped model comes without a depth scheme.
    """
    if model.is_transformer != (depth is None):
        raise ValueError(
            "a Transformer has no depth scheme and a looped model needs one; "
            f"got injection={model.injection!r} with depth={depth}"
        )
    if rule == "exact":
        return _exact(model, depth, seq_len)
    if rule not in FLOPS_RULES:
        raise ValueError(f"flops rule is {rule!r}; it must be one of {', '.join(FLOPS_RULES)}")
    n = count_params(model)
    mu, mu_bwd = depth.declared() if depth is not None else (1, 1)
    once = n.total - n.embedding - n.head - n.core
    head = model.vocab_size * model.d_model
    if rule == "paper":
        once -= n.value_embeddings
    elif model.tie_embeddings:
        head = 0
    attention_once, attention_core = _attention_forward(model, seq_len)
    return FlopCount(
        once=6 * once,
        core=(2 * mu + 4 * mu_bwd) * n.core,
        attention=3 * attention_once + (mu + 2 * mu_bwd) * attention_core,
        head=6 * head,
    )


def eval_flops_per_token(model: ModelConfig, n_loops: int, seq_len: int) -> float:
    """Matrix-product FLOPs of one forward pass per token at `n_loops`."""
    once, core = _matmul_params(model)
    attention_once, attention_core = _attention_forward(model, seq_len)
    head = model.vocab_size * model.d_model
    return 2 * (once + n_loops * core + head) + attention_once + n_loops * attention_core


def _exact(model: ModelConfig, depth: DepthScheme | None, seq_len: int) -> FlopCount:
    once, core = _matmul_params(model)
    attention_once, attention_core = _attention_forward(model, seq_len)
    no_grad, grad = (0.0, 1.0) if depth is None else (depth.mean_no_grad(), depth.mean_grad())
    # the state enters the gradient steps without gradient: W's half in the first needs none for it
    unneeded = 2 * model.state_width**2 if model.injection == "concat" else 0
    return FlopCount(
        once=6 * once,
        core=(2 * no_grad + 6 * grad) * core - unneeded,
        attention=3.5 * attention_once + (no_grad + 3.5 * grad) * attention_core,
        head=6 * model.vocab_size * model.d_model,
    )


def _attention_forward(model: ModelConfig, seq_len: int) -> tuple[int, int]:
    """Score and value products per token forward: (prelude and coda, one core step)."""
    per_layer = [4 * model.layer_width(i) * seq_len for i in range(model.n_layers)]
    core = sum(f for i, f in enumerate(per_layer) if model.layer_part(i) == "core")
    return sum(per_layer) - core, core


def _matmul_params(model: ModelConfig) -> tuple[int, int]:
    """Weights in matrix products: (those that run once, head excluded; those of one core step)."""
    layers = [layer_matmul_params(model, i) for i in range(model.n_layers)]
    core = sum(p for i, p in enumerate(layers) if model.layer_part(i) == "core")
    once = sum(layers) - core
    d, s = model.d_model, model.state_width
    if model.has_readout:
        once += d * s
    if model.injection in ("diagonal", "diagonal-zoh"):
        once += s * d
    elif model.injection == "concat":
        once += s * d  # W's half that meets e does not change over the loop
        core += s * s
    return once, core
