"""Read and write checkpoints in the published implementation's format.

A folder with `config.json` (class ParcaeConfig or GPTConfig) and `model.pt` or `pytorch_model.bin`,
a plain state dict. What we do not know is refused by name: a number about some other model is
worse than none. Format: REFERENCE.md; SandyResearch/parcae @ dee8363, `save_pretrained`.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parcae_core.checkpoints.published_config import listed, model_config
from parcae_core.config import ModelConfig
from parcae_core.errors import UserError
from parcae_core.model.layers import Rotary
from parcae_core.model.parcae import Parcae, build_model
from parcae_core.plain import read_json

WEIGHT_FILES = ("model.pt", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class UpstreamCheckpoint:
    """A published model in our form; `settings` is its config.json, kept for writing it back."""

    model: Parcae
    settings: dict[str, Any]

    @property
    def mean_recurrence(self) -> int:
        """Training depth it declares; 1 for the Transformer."""
        return self.settings.get("mean_recurrence") or 1


def is_upstream(folder: Path) -> bool:
    """Whether a folder looks like a published checkpoint."""
    path = folder / "config.json"
    try:
        return path.is_file() and '"_class_name"' in path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def load_upstream(folder: Path) -> UpstreamCheckpoint:
    """Read a published checkpoint.

    Raises:
        UserError: missing or damaged files, a pickle that carries code, options or tensors we do
            not know, tensors that are missing or have another shape. Nothing is half-loaded.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json; a published checkpoint has one")
    settings = read_json(path)
    config = model_config(settings, where=path)
    weights_path = next((folder / f for f in WEIGHT_FILES if (folder / f).is_file()), None)
    if weights_path is None:
        raise UserError(f"{folder}: no weights; looked for {' and '.join(WEIGHT_FILES)}")
    state = _read_state(weights_path)
    model = build_model(config, seed=0, device="meta")
    wanted = {theirs: ours for ours, theirs in tensor_names(model).items()}
    _check_head_and_rotary(state, config, weights_path)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    loaded: dict[str, Tensor] = {}
    known = {*wanted, "freqs_cis"} | ({"lm_head.weight"} if config.tie_embeddings else set())
    problems = [f"{name} is not in this model" for name in sorted(set(state) - known)]
    for theirs, ours in wanted.items():
        if theirs not in state:
            problems.append(f"{theirs} is missing")
            continue
        tensor = state[theirs]
        if tensor.ndim not in (1, 2) or tensor.is_complex():
            problems.append(f"{theirs} has {tensor.ndim} dimensions of {tensor.dtype}")
            continue
        if ours == "head.weight" and _transposed(settings):
            tensor = tensor.T
        if ours.endswith(".mlp.gate+up.weight"):
            halves = dict(zip(("gate", "up"), tensor.tensor_split(2), strict=True))
            found = {ours.replace("gate+up", half): t for half, t in halves.items()}
        else:
            found = {ours: tensor}
        for name, value in found.items():
            if tuple(value.shape) != shapes[name]:
                problems.append(f"{theirs} has shape {tuple(value.shape)}, needed {shapes[name]}")
            loaded[name] = value.to(torch.float32)
    problems += [f"{n} is not finite" for n, t in loaded.items() if not t.isfinite().all()]
    if problems:
        raise UserError(listed(weights_path, "does not fit its config.json", problems))
    model = build_model(config, seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(loaded[name])
    return UpstreamCheckpoint(model=model, settings=settings)


def save_upstream(checkpoint: UpstreamCheckpoint, folder: Path) -> None:
    """Write a checkpoint in the published format; the inverse of `load_upstream`.

    Raises:
        OSError: if the disk has no room.
    """
    model, settings = checkpoint.model, checkpoint.settings
    if model_config(settings, where="settings") != model.config:
        raise ValueError("settings describe another model than the one given")
    ours = dict(model.named_parameters())
    state: dict[str, Tensor] = {"freqs_cis": _freqs_cis(model.rotary)}
    for name, theirs in tensor_names(model).items():
        if name.endswith(".mlp.gate+up.weight"):
            halves = [ours[name.replace("gate+up", half)].detach() for half in ("gate", "up")]
            state[theirs] = torch.cat(halves)
        else:
            tensor = ours[name].detach().clone()
            state[theirs] = (
                tensor.T.contiguous() if name == "head.weight" and _transposed(settings) else tensor
            )
    if model.config.tie_embeddings:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHT_FILES[0]
    try:
        torch.save(state, path)
    except RuntimeError as error:  # how it reports a full disk
        raise OSError(f"{path}: cannot be written ({str(error)[:200]})") from error
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def tensor_names(model: Parcae) -> dict[str, str]:
    """Our parameter name -> the published one; fused gate and up projections as `gate+up`."""
    c = model.config
    names: dict[str, str] = {}
    for name, _ in model.named_parameters():
        if name.endswith(".mlp.gate.weight"):
            continue  # with its up projection
        if name.endswith(".mlp.up.weight") and c.mlp == "swiglu":
            name = name.replace(".mlp.up.", ".mlp.gate+up.")
        names[name] = _their_name(name, c)
    return names


def _their_name(name: str, c: ModelConfig) -> str:
    top = {
        "embedding.weight": "transformer.wte.weight",
        "norm_final.weight": "transformer.ln_f.weight",
        "norm_prelude.weight": "transformer.ln_prelude.weight",
        "readout.weight": "transformer.C.weight",
        "injection.a_log": "transformer.adapter.A_log",
        "injection.dt_bias": "transformer.adapter.dt_bias",
        "injection.B": "transformer.adapter.B",
        "injection.weight": "transformer.adapter.adapter.weight",
        "head.weight": "lm_head.weight",
    }
    if name in top:
        return top[name]
    if name.startswith("value_embeddings."):
        return name.replace("value_embeddings", "value_embeds")
    part, index, rest = name.split(".", 2)
    inner = {
        "norm_attn.weight": "norm_1.weight",
        "norm_mlp.weight": "norm_2.weight",
        "attn.q.weight": "attn.c_q.weight",
        "attn.k.weight": "attn.c_k.weight",
        "attn.v.weight": "attn.c_v.weight",
        "attn.out.weight": "attn.c_proj.weight",
        "attn.value_gate.weight": "attn.ve_gate.weight",
        "mlp.up.weight": "mlp.fc.weight",
        "mlp.gate+up.weight": "mlp.fc.weight",
        "mlp.down.weight": "mlp.proj.weight",
    }[rest]
    if c.is_transformer:
        first = {"prelude": 0, "core": c.n_prelude, "coda": c.n_prelude + c.n_core}[part]
        return f"transformer.h.{first + int(index)}.{inner}"
    return f"transformer.{'core_block' if part == 'core' else part}.{index}.{inner}"


def _read_state(path: Path) -> dict[str, Tensor]:
    _require_plain_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: refused, it holds more than tensors or is damaged ({reason}); "
            "only plain state dicts are read, because a pickle can run code"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle fails in any of torch's own steps
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {str(error)[:200]}); is the file whole?"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(n, str) and isinstance(t, Tensor) and t.layout == torch.strided
        for n, t in state.items()
    ):
        raise UserError(f"{path}: not a state dict of tensors")
    if views := sorted(n for n, t in state.items() if t.nbytes > t.untyped_storage().nbytes()):
        raise UserError(
            f"{path}: {views[0]} is larger than its data; a copy of it would fill memory"
        )
    return state


def _require_plain_archive(path: Path) -> None:
    """Refuse what can be larger in memory than on disk, or is no archive of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"{path}: refused, it is not an archive as torch.save has written since 1.6, or is damaged "
            f"({error}); other pickles are not read, because a pickle can run code"
        ) from None
    if unpacked > path.stat().st_size:
        raise UserError(f"{path}: refused, it is compressed; torch.save writes plain archives")


def _check_head_and_rotary(state: dict[str, Tensor], config: ModelConfig, path: Path) -> None:
    """Tensors that repeat what config.json says must say the same."""
    head, embedding = state.get("lm_head.weight"), state.get("transformer.wte.weight")
    both = config.tie_embeddings and head is not None and embedding is not None
    if both and not torch.equal(head, embedding):
        raise UserError(f"{path}: tie_embeddings is true but lm_head.weight is not the embedding")
    table = state.get("freqs_cis")
    if table is not None:
        d_head = config.d_model // config.n_head
        fits = tuple(table.shape) == (1, config.context, 1, d_head // 2, 2)
        # bf16 storage rounds the table; another base or condensing differs by far more
        if not fits or not (table.float() - _freqs_cis(_rotary(config))).abs().max() <= 0.01:
            raise UserError(
                f"{path}: its rotary table is not that of rope_base={config.rope_base} and a "
                f"context of {config.context}; correct config.json"
            )


def _transposed(settings: dict[str, Any]) -> bool:
    """Whether an untied head is stored as (D, V): the fused heads want it so."""
    fused = settings.get("use_fused_head", "pytorch")
    if settings["_class_name"] == "GPTConfig":
        return bool(fused)
    return fused in ("full-triton", "hhe")


def _rotary(config: ModelConfig) -> Rotary:
    return Rotary(config.d_model // config.n_head, config.context, config.rope_base)


def _freqs_cis(rotary: Rotary) -> Tensor:
    return rotary.turn[None, :, None].clone()  # (1, context, 1, K/2, 2)
