"""What one trial costs, made once: parameters, training FLOPs by every rule, memory of a step.

A planned trial's cost is stored in its trial.json, and plan table, progress, records and W&B read
it from the trial; nothing else counts again. Free of torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from parcae_core.accounting.flops import FLOPS_RULES, FlopsRule, train_flops_per_token
from parcae_core.accounting.memory import MemoryEstimate, training_memory
from parcae_core.accounting.params import count_params
from parcae_core.config import ModelConfig, as_dict
from parcae_core.depth import DepthScheme
from parcae_core.plain import build

# Raise when the same trial comes to cost another number: what was stored under another version is
# then counted anew.
COST_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialCost:
    """What a whole training is planned to cost."""

    n_params: int  # all, a tied head once
    n_params_core: int  # of the looped part, once; 0 for a Transformer
    n_params_unrolled: int  # N(mu_rec) = n_params + (mu_rec - 1) * n_params_core
    n_params_once: int  # n_params - n_params_core
    train_flops: dict[FlopsRule, float]  # of the whole training
    memory: MemoryEstimate  # of a training step

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the version of the counting."""
        return as_dict(self) | {"memory": as_dict(self.memory), "version": COST_VERSION}

    @classmethod
    def from_dict(cls, data: dict[str, Any] | None) -> TrialCost | None:
        """Inverse of `to_dict`; None for what another version counted, or nothing stored.

        Raises:
            ValueError: for a missing key, or a value that is not of its type.
        """
        if not isinstance(data, dict) or data.get("version") != COST_VERSION:
            return None
        cost = build(cls, {k: v for k, v in data.items() if k != "version"}, "cost")
        if cost.train_flops.keys() != set(FLOPS_RULES):
            raise ValueError(f"cost.train_flops is by {', '.join(cost.train_flops)}")
        in_order = {rule: cost.train_flops[rule] for rule in FLOPS_RULES}
        return replace(cost, train_flops=in_order)


def trial_cost(
    model: ModelConfig,
    depth: DepthScheme | None,
    *,
    context: int,
    n_tokens: int,
    precision: str,
    on_gpu: bool,
) -> TrialCost:
    """Count a training.

    Args:
        depth: None for the fixed-depth Transformer.
        context: tokens per sequence.
        n_tokens: trained on in all.
    """
    counts = count_params(model)
    core = 0 if depth is None else counts.core
    mu, grad_steps = (1, 1) if depth is None else (depth.mean_recurrence, depth.mean_backprop_depth)
    return TrialCost(
        n_params=counts.total,
        n_params_core=core,
        n_params_unrolled=counts.total + (mu - 1) * core,
        n_params_once=counts.total - core,
        train_flops=flops_by_rule(model, depth, context=context, n_tokens=n_tokens),
        memory=training_memory(
            model, grad_steps=grad_steps, context=context, precision=precision, on_gpu=on_gpu
        ),
    )


def flops_by_rule(
    model: ModelConfig, depth: DepthScheme | None, *, context: int, n_tokens: int
) -> dict[FlopsRule, float]:
    """FLOPs by rule of training on `n_tokens` tokens."""
    return {
        rule: train_flops_per_token(model, depth, context, rule).total * n_tokens
        for rule in FLOPS_RULES
    }
