"""Named model shapes: the four of the paper, and small ones that train on a CPU in minutes."""

from __future__ import annotations

from parcae_core.config import ModelConfig

# name: (d_model, heads, prelude, core, coda, vocabulary, context); d_ff = 4 d_model.
# 140m-1.3b: Parcae (arXiv:2604.12946), table of Transformer-setup models, head width 128.
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
PRESETS = tuple(_SHAPES)


def preset(name: str, *, transformer: bool = False) -> ModelConfig:
    """The Parcae model of a preset, or its fixed-depth Transformer baseline.

    Raises:
        ValueError: if the preset is unknown; the message lists the known ones.
    """
    if name not in _SHAPES:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    d_model, n_head, n_prelude, n_core, n_coda, vocab_size, context = _SHAPES[name]
    return ModelConfig(
        vocab_size=vocab_size,
        context=context,
        d_model=d_model,
        n_head=n_head,
        d_ff=4 * d_model,
        n_prelude=n_prelude,
        n_core=n_core,
        n_coda=n_coda,
        injection="none" if transformer else "diagonal",
        prelude_norm=not transformer,
    )
