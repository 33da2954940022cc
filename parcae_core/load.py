"""Open a trained model from wherever one may lie: our checkpoints, a run's folder, or upstream's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from parcae_core.checkpoint import DamagedCheckpoint, read_checkpoint
from parcae_core.errors import UserError
from parcae_core.model import Parcae, build_model
from parcae_core.upstream import is_upstream, load_upstream


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A model ready to evaluate, on the CPU in float32."""

    model: Parcae
    mean_recurrence: int  # training depth; 1 for a Transformer
    seed: int  # of the initial states in evaluation
    origin: str


def load_model(path: Path) -> TrainedModel:
    """Read a model.

    Args:
        path: a published checkpoint (config.json and weights), one of our checkpoints
            (checkpoint.json), or a run folder (its newest checkpoint).

    Raises:
        UserError: nothing there that we know, or it is damaged.
    """
    if is_upstream(path):
        loaded = load_upstream(path)
        return TrainedModel(
            model=loaded.model,
            mean_recurrence=loaded.mean_recurrence,
            seed=0,
            origin=f"published checkpoint {path}",
        )
    folder = path if (path / "checkpoint.json").is_file() else _newest(path)
    try:
        checkpoint = read_checkpoint(folder)
    except DamagedCheckpoint as error:
        raise UserError(f"{folder}: {error}") from None
    trial = checkpoint.trial
    model = build_model(trial.model, seed=trial.seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(checkpoint.weights[name])
    return TrainedModel(
        model=model,
        mean_recurrence=trial.mean_recurrence,
        seed=trial.seed,
        origin=f"trial {trial.trial_id} at step {checkpoint.step} of {trial.n_steps}",
    )


def _newest(path: Path) -> Path:
    folders = sorted((path / "checkpoints").glob("step-*"))
    if not folders:
        raise UserError(
            f"{path}: no model found; looked for config.json with _class_name (published format), "
            "checkpoint.json, and checkpoints/step-*"
        )
    return folders[-1]
