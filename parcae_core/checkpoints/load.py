"""Open a trained model from wherever one may lie: our checkpoints, a run's folder, or upstream's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parcae_core.checkpoints.native import (
    DamagedCheckpoint,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
)
from parcae_core.checkpoints.published import is_upstream, load_upstream
from parcae_core.errors import UserError
from parcae_core.model.parcae import Parcae
from parcae_core.plain import read_json
from parcae_core.trial import Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """A model ready to evaluate, on the CPU in float32."""

    model: Parcae
    mean_recurrence: int  # training depth; 1 for a Transformer
    seed: int  # of the initial states in evaluation
    origin: str
    # that trained it, and the updates made; None for a published checkpoint
    trial: Trial | None = None
    step: int | None = None


def load_model(path: Path) -> TrainedModel:
    """Read a model.

    Args:
        path: a published checkpoint (config.json and weights), one of our checkpoints
            (checkpoint.json), or a run folder, finished or not, whose newest whole one is read.

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
    try:
        return _native(path)
    except DamagedCheckpoint as error:
        raise UserError(f"{path}: {error}; its run's folder may hold an older, whole one") from None


def _native(path: Path) -> TrainedModel:
    if (path / "checkpoint.json").is_file():
        found = read_checkpoint(path)
    elif (path / "checkpoints").is_dir():
        found = newest_checkpoint(path / "checkpoints")
        if found is None:
            raise UserError(
                f"{path}: there is no whole checkpoint in its folder checkpoints/; train the trial first"
            )
    elif (path / "config.json").is_file():
        kind = read_json(path / "config.json").get("model_type")
        raise UserError(
            f"{path}: config.json describes a model of type {kind!r:.40}, which is not read here; give a "
            "run's folder, one of its checkpoints, or a checkpoint of the published Parcae"
        )
    else:
        raise UserError(
            f"{path}: no model found; looked for config.json with _class_name (published format), "
            "checkpoint.json, and a run's folder checkpoints/"
        )
    trial = found.trial
    return TrainedModel(
        model=load_weights(found),
        mean_recurrence=trial.mean_recurrence,
        seed=trial.seed,
        origin=f"trial {trial.trial_id} at step {found.step} of {trial.n_steps}",
        trial=trial,
        step=found.step,
    )
