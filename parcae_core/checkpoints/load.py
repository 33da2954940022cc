"""Open a trained model from wherever one may lie: our checkpoints, a run's folder, or upstream's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parcae_core.checkpoints.native import DamagedCheckpoint, read_checkpoint
from parcae_core.checkpoints.published import is_upstream, load_upstream
from parcae_core.checkpoints.trained import Trained, load_trained, model_of
from parcae_core.errors import UserError
from parcae_core.model.parcae import Parcae


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
            (checkpoint.json), or a run folder, whose newest whole one is read.

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
    if (path / "checkpoint.json").is_file():
        trained = _one_checkpoint(path)
    elif (path / "checkpoints").is_dir():
        trained = load_trained(path, device="cpu")
    else:
        raise UserError(
            f"{path}: no model found; looked for config.json with _class_name (published format), "
            "checkpoint.json, and a run's folder checkpoints/"
        )
    trial = trained.trial
    return TrainedModel(
        model=trained.model,
        mean_recurrence=trial.mean_recurrence,
        seed=trial.seed,
        origin=f"trial {trial.trial_id} at step {trained.step} of {trial.n_steps}",
    )


def _one_checkpoint(path: Path) -> Trained:
    try:
        found = read_checkpoint(path)
        return Trained(model=model_of(found), trial=found.trial, step=found.step)
    except DamagedCheckpoint as error:
        raise UserError(f"{path}: {error}; its run's folder may hold an older, whole one") from None
