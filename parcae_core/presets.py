"""Named model shapes: the four of the paper, and small ones that train on a CPU in minutes."""

from __future__ import annotations

from typing import Any

from parcae_core.config import Injection, ModelConfig

# d_ff = 4 d_model. 140m-1.3b: Parcae (arXiv:2604.12946), table of Transformer-setup models, head width 128.
_SHAPE = ("d_model", "n_head", "n_prelude", "n_core", "n_coda", "vocab_size", "context")
_SHAPES: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "nano": (32, 2, 1, 1, 1, 264, 128),
    "micro": (64, 2, 1, 1, 1, 264, 256),
    "mini": (128, 4, 2, 2, 2, 4_096, 256),
    "small": (256, 4, 2, 2, 2, 4_096, 512),
    "140m": (768, 6, 2, 2, 2, 32_768, 2_048),
    "370m": (1_024, 8, 4, 4, 4, 32_768, 2_048),
    "770m": (1_280, 10, 6, 6, 6, 32_768, 2_048),
    "1.3b": (1_536, 12, 8, 8, 8, 32_768, 2_048),
}
# The RDM setup, the paper's second set of baselines: SwiGLU, vocabulary 65,536, no value
# embeddings. (d_model, d_ff, prelude, core, coda). Heads of width 128 and a context of 2,048 are
# our assumption; neither changes a parameter count.
_RDM_SHAPES: dict[str, tuple[int, int, int, int, int]] = {
    "rdm-100m": (1_024, 3_520, 1, 1, 1),
    "rdm-350m": (2_048, 7_040, 1, 2, 1),
}
PRESETS = (*_SHAPES, *_RDM_SHAPES)


def preset(name: str, *, transformer: bool = False, rdm: bool = False) -> ModelConfig:
    """The Parcae model of a preset, its fixed-depth Transformer, or its RDM baseline.

    Args:
        transformer: the fixed-depth Transformer of the same layers.
        rdm: the concatenating baseline with norms on the residual sums; RDM presets only.

    Raises:
        ValueError: if the preset is unknown, or has no such baseline.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    if name in _RDM_SHAPES:
        return _rdm_setup(name, transformer=transformer, rdm=rdm)
    if rdm:
        raise ValueError(f"preset {name!r} has no RDM baseline; {', '.join(_RDM_SHAPES)} have")
    shape: dict[str, Any] = dict(zip(_SHAPE, _SHAPES[name], strict=True))
    return ModelConfig(
        **shape,
        d_ff=4 * shape["d_model"],
        injection="none" if transformer else "diagonal",
        prelude_norm=not transformer,  # without a loop there is none; said for readers
    )


def _rdm_setup(name: str, *, transformer: bool, rdm: bool) -> ModelConfig:
    """Counts of RDM-100M, RDM-350M and Parcae-350M follow to the digit (test_params_flops.py).

    Source: PAPER.md, "RDM setup". It does not say which norms and projections the models have;
    this is the structure that gives three of the four published counts. Parcae-100M comes to
    113,189,888 with it, where the paper repeats RDM-100M's 114,242,560.
    """
    d_model, d_ff, n_prelude, n_core, n_coda = _RDM_SHAPES[name]
    injection: Injection = "none" if transformer else "concat" if rdm else "diagonal"
    return ModelConfig(
        vocab_size=65_536,
        context=2_048,
        d_model=d_model,
        n_head=d_model // 128,
        d_ff=d_ff,
        n_prelude=n_prelude,
        n_core=n_core,
        n_coda=n_coda,
        injection=injection,
        mlp="swiglu",
        value_embeddings=False,
        prelude_norm=False,
        residual_norm=rdm,
        readout=False,
    )
