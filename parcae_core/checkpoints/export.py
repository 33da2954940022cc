"""A trained model as a folder for other programs: transformers, or the published implementation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parcae_core.checkpoints.load import TrainedModel
from parcae_core.checkpoints.native import write_tensors
from parcae_core.checkpoints.published import UpstreamCheckpoint, save_upstream
from parcae_core.checkpoints.published_config import upstream_settings
from parcae_core.checkpoints.text import TOKENIZER_FILE
from parcae_core.config import ModelConfig
from parcae_core.data.bpe import standalone_json
from parcae_core.data.io import temporary_beside, whole_folder
from parcae_core.data.tokenizer import Tokenizer
from parcae_core.depth import default_backprop_depth
from parcae_core.errors import UserError
from parcae_core.model.initial import state_key

MODELING_FILE = "modeling_parcae.py"  # beside this file, copied as it is


def export_transformers(
    trained: TrainedModel, tokenizer: Tokenizer, folder: Path, *, n_loops: int
) -> None:
    """Write what `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads.

    Args:
        n_loops: of `forward` and `generate` when the caller names no other.

    Raises:
        UserError: the folder is there and holds something, or the loops are not the model's.
    """
    config = trained.model.config
    if n_loops < 1 or (config.is_transformer and n_loops != 1):
        needed = "1, since its layers run once" if config.is_transformer else "1 or more"
        raise UserError(f"{n_loops} loops asked for; this model needs {needed}")
    tokens = standalone_json(tokenizer)
    names = {t["id"]: t["content"] for t in tokens["added_tokens"]}
    ends = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]
    pad = tokenizer.bos_id if tokenizer.pad_id is None else tokenizer.pad_id
    ids = {
        "bos_token_id": tokenizer.bos_id,
        # the model ends a text by beginning the next one
        "eos_token_id": ends[0] if len(set(ends)) == 1 else ends,
        "pad_token_id": pad,
    }
    files: dict[str, dict[str, Any]] = {
        "config.json": {
            "architectures": ["ParcaeForCausalLM"],
            "auto_map": {
                "AutoConfig": "modeling_parcae.ParcaeConfig",
                "AutoModelForCausalLM": "modeling_parcae.ParcaeForCausalLM",
            },
            "model_type": "parcae",
            "dtype": "float32",
            **transformers_config(config),
            "num_loops": n_loops,
            "state_key": state_key(trained.seed, 0, 0),
            **ids,
        },
        "generation_config.json": {"num_loops": n_loops, **ids},
        TOKENIZER_FILE: tokens,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names[tokenizer.bos_id],
            "eos_token": names[ends[-1]],
            "pad_token": names[pad],
            "model_max_length": config.context,
            "clean_up_tokenization_spaces": False,
        },
    }

    with _new_folder(folder) as into:
        for name, data in files.items():
            text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
            (into / name).write_text(text, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name(MODELING_FILE), into / MODELING_FILE)
        weights = dict(trained.model.named_parameters())
        write_tensors(into / "model.safetensors", weights, {"format": "pt"})


def export_published(trained: TrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the published implementation's format, with tokenizer.json beside it.

    Raises:
        UserError: the folder is there and holds something, or that implementation has no such model.
    """
    mu, trial = trained.mean_recurrence, trained.trial
    settings = upstream_settings(
        trained.model.config,
        mean_recurrence=mu,
        mean_backprop_depth=trial.mean_backprop_depth if trial else default_backprop_depth(mu),
    )

    with _new_folder(folder) as into:
        save_upstream(UpstreamCheckpoint(model=trained.model, settings=settings), into)
        text = tokenizer.to_json() or json.dumps(standalone_json(tokenizer), ensure_ascii=False)
        (into / TOKENIZER_FILE).write_text(text, encoding="utf-8")


def transformers_config(config: ModelConfig) -> dict[str, Any]:
    """The shape with every width written out, as modeling_parcae's ParcaeConfig has it."""
    core, alike = config.n_prelude, (
        "vocab_size", "context", "d_model", "d_ff", "n_prelude", "n_core", "n_coda", "injection", "mlp",
        "residual_norm", "qk_norm", "value_gate_width", "rope_base", "norm_eps",
    )  # fmt: skip
    return {name: getattr(config, name) for name in alike} | {
        "d_state": config.state_width,
        "n_head": config.layer_heads(0),
        "n_kv_head": config.layer_kv_heads(0),
        "core_n_head": config.layer_heads(core),
        "core_n_kv_head": config.layer_kv_heads(core),
        "core_d_ff": config.layer_ff(core),
        "prelude_norm": config.has_prelude_norm,
        "readout": config.has_readout,
        "value_layers": [i for i in range(config.n_layers) if config.has_value_embedding(i)],
        "separate_head": not config.tie_embeddings,
    }


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Where to write; the folder appears complete or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already and not empty; name a new folder")
    partial = temporary_beside(folder.absolute())
    with whole_folder(folder, partial):
        yield partial
