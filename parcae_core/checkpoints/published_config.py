"""config.json of the published implementation, from and to ours.

What we do not know is refused by name: a number about some other model is worse than none. Format:
REFERENCE.md; SandyResearch/parcae @ dee8363, `save_pretrained`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from parcae_core.config import ModelConfig
from parcae_core.depth import MAX_LOOPS
from parcae_core.errors import UserError
from parcae_core.plain import MAX_INT, build

# Options that would change the forward; only these values are what parcae_core.model.parcae computes.
_FIXED: dict[str, Any] = {
    "bias": False,
    "qk_bias": False,
    "clip_qkv": None,
    "logit_softcap": None,
    "use_abacus": False,
    "randomize_positions_from": None,
    "mup_model_scaling_factor": 1,
    "debias_attention": False,
    "center_attention": False,
    "simple_ops": False,
    "block_class_name": "TransformerPreNormBlock",
    "norm_class_name": "RMSNorm",
}
# Initialisations without an embedding or logit scale in the forward.
_UNSCALED_INITS = ("scaled-zero", "scaled", "scaled-geiping", "small")
_MLPS = {("BaseMLP", "ReLU2"): "relu2", ("GatedMLP", "SiLU"): "swiglu"}
_INJECTIONS = {"diagonal": "diagonal", "linear": "concat", "add": "add"}
# Read below, or without influence on the forward at a given number of loops.
_WHOLE = {
    "block_size", "n_embd", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "padded_vocab_size", "n_layer", "n_layers_in_prelude", "n_layers_in_recurrent_block",
    "n_layers_in_coda", "recurrent_embedding_dimension",
    "recurrent_intermediation_embedding_dimension", "recurrent_num_attention_heads",
    "mean_recurrence",
}  # fmt: skip
_READ = _WHOLE | {
    "_class_name", "rope_settings", "norm_eps", "mlp_class_name", "nonlin_name", "qk_norm",
    "tie_embeddings", "use_fused_head", "init_strategy", "injection_type", "prelude_norm",
}  # fmt: skip
_TRAINING_ONLY = {
    "name", "hf_config", "vocab_size", "padding_multiple", "init_orthogonal",
    "skip_initialization", "activation_checkpoint_impl", "strategy", "attn_impl", "state_init",
    "sampling_scheme", "mean_backprop_depth", "lockstep_n", "lockstep_k",
    "curriculum_target", "recurrent_iteration_method", "model_class_name",
    "_is_recurrent_block_config",
}  # fmt: skip


def upstream_settings(
    config: ModelConfig, *, mean_recurrence: int = 1, mean_backprop_depth: int = 1
) -> dict[str, Any]:
    """The published config.json of one of our models.

    Raises:
        UserError: if the published implementation has no such model.
    """
    c = config
    mlp = next(pair for pair, ours in _MLPS.items() if ours == c.mlp)
    common = dict(_FIXED) | {
        "block_size": c.context,
        "n_embd": c.d_model,
        "intermediate_size": c.d_ff,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.layer_kv_heads(0),
        "vocab_size": c.vocab_size,
        "padded_vocab_size": c.vocab_size,
        "rope_settings": {"use_rope": True, "rope_condense_ratio": 1, "rope_base": c.rope_base},
        "norm_eps": c.norm_eps,
        "mlp_class_name": mlp[0],
        "nonlin_name": mlp[1],
        "qk_norm": c.qk_norm,
        "tie_embeddings": c.tie_embeddings,
        "init_strategy": "scaled-zero",
        "init_orthogonal": True,
        "use_fused_head": "pytorch",
    }
    if c.is_transformer:
        settings = common | {"n_layer": c.n_layers, "_class_name": "GPTConfig"}
    else:
        injection = next((k for k, v in _INJECTIONS.items() if v == c.injection), None)
        settings = common | {
            "injection_type": injection,
            "n_layers_in_prelude": c.n_prelude,
            "n_layers_in_recurrent_block": c.n_core,
            "n_layers_in_coda": c.n_coda,
            "recurrent_embedding_dimension": c.state_width,
            "recurrent_intermediation_embedding_dimension": c.layer_ff(c.n_prelude),
            "recurrent_num_attention_heads": c.layer_heads(c.n_prelude),
            "prelude_norm": c.prelude_norm,
            "state_init": "like-init",
            "mean_recurrence": mean_recurrence,
            "mean_backprop_depth": mean_backprop_depth,
            "sampling_scheme": "poisson-truncated-full",
            "recurrent_iteration_method": "per-sequence",
            "_class_name": "ParcaeConfig",
        }
    if settings.get("injection_type", "") is None or model_config(settings, where="model") != c:
        raise UserError(
            f"this model (injection={c.injection!r}, residual_norm={c.residual_norm}, "
            f"readout={c.readout}, value_embeddings={c.value_embeddings}) does not exist in the "
            "published format; save it as safetensors instead"
        )
    return settings


def model_config(settings: dict[str, Any], *, where: Path | str) -> ModelConfig:
    """Our configuration of a published one.

    Raises:
        UserError: an unknown class, key, or a value that would change the forward.
    """
    kind = settings.get("_class_name")
    if kind not in ("ParcaeConfig", "GPTConfig"):
        raise UserError(f"{where}: _class_name is {kind!r}; ParcaeConfig or GPTConfig was expected")
    unknown = sorted(set(settings) - _READ - _TRAINING_ONLY - set(_FIXED))
    if unknown:
        raise UserError(listed(where, "has keys we do not know", unknown))
    for key, value in _FIXED.items():
        if settings.get(key, value) != value:
            raise UserError(f"{where}: {key} is {settings[key]!r}; only {value!r} is supported")
    init = settings.get("init_strategy", "scaled")
    if init not in _UNSCALED_INITS:
        raise UserError(
            f"{where}: init_strategy is {init!r}, which may scale embeddings or logits; "
            f"supported are {', '.join(_UNSCALED_INITS)}"
        )
    mlp = (settings.get("mlp_class_name", "BaseMLP"), settings.get("nonlin_name", "GELU"))
    if mlp not in list(_MLPS):  # a list, since a value from a file need not be hashable
        raise UserError(
            f"{where}: MLP {mlp[0]} with {mlp[1]} is not supported; known: {list(_MLPS)}"
        )
    rope = settings.get("rope_settings") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{where}: rope_settings is {rope!r:.60}; an object was expected")
    if not rope.get("use_rope", True) or rope.get("rope_condense_ratio", 1) != 1:
        raise UserError(f"{where}: rope_settings {rope} are not supported; plain rotary is needed")
    try:
        for key in _WHOLE & settings.keys():
            value = settings[key]
            if value is not None and (type(value) is not int or not 0 <= value <= MAX_INT):
                raise ValueError(f"{key} is {value!r:.60}; a whole number was expected")
        if (settings.get("mean_recurrence") or 1) > MAX_LOOPS:
            raise ValueError(f"mean_recurrence is above {MAX_LOOPS}")
        return _model_config(settings, _MLPS[mlp], rope.get("rope_base", 50_000))
    except KeyError as error:
        raise UserError(f"{where}: key {error} is missing") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _model_config(settings: dict[str, Any], mlp: str, rope_base: Any) -> ModelConfig:
    """Wrong types become ValueErrors in `build`; what is computed from here is whole or None."""
    n_head = settings["num_attention_heads"]
    kv = settings.get("num_key_value_heads") or n_head
    shared = {
        "vocab_size": settings["padded_vocab_size"],
        "context": settings["block_size"],
        "d_model": settings["n_embd"],
        "n_head": n_head,
        "n_kv_head": None if kv == n_head else kv,
        "d_ff": settings["intermediate_size"],
        "mlp": mlp,
        "qk_norm": settings.get("qk_norm", False),
        "tie_embeddings": settings.get("tie_embeddings", False),
        "rope_base": rope_base,
        "norm_eps": settings.get("norm_eps", 1e-5),
    }
    if settings["_class_name"] == "GPTConfig":
        n = settings["n_layer"]
        # the split is only ours to name: a Transformer runs every layer once
        third = (n or 0) // 3
        split = {"n_prelude": third, "n_core": (n or 0) - 2 * third, "n_coda": third}
        return build(ModelConfig, shared | split | {"injection": "none", "prelude_norm": False})
    width = settings["recurrent_embedding_dimension"] or 0
    core_heads = settings.get("recurrent_num_attention_heads") or n_head
    core_ff = settings["recurrent_intermediation_embedding_dimension"]
    plain_ff = (shared["d_ff"] or 0) * width // (shared["d_model"] or 1)
    injection = settings["injection_type"]
    if not isinstance(injection, str) or injection not in _INJECTIONS:
        raise ValueError(f"injection_type is {injection!r:.60}")
    looped = {
        "n_prelude": settings["n_layers_in_prelude"],
        "n_core": settings["n_layers_in_recurrent_block"],
        "n_coda": settings["n_layers_in_coda"],
        "d_state": None if width == shared["d_model"] else width,
        "core_n_head": None if core_heads == n_head == kv else core_heads,
        "core_d_ff": None if core_ff == plain_ff else core_ff,
        "injection": _INJECTIONS[injection],
        "prelude_norm": settings.get("prelude_norm", False),
    }
    return build(ModelConfig, shared | looped)


def listed(where: Path | str, what: str, items: list[str]) -> str:
    """A message with the first few of some names."""
    shown = ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
    return f"{where}: {what}: {len(items)} found ({shown})"
