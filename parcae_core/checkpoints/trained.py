"""The model a run has left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parcae_core.checkpoints.native import (
    Checkpoint,
    DamagedCheckpoint,
    newest_checkpoint,
    require_weights,
)
from parcae_core.device import resolve_device
from parcae_core.errors import UserError
from parcae_core.model.parcae import Parcae, build_model
from parcae_core.trial import Trial


@dataclass(frozen=True, slots=True)
class Trained:
    """A model with the weights of a run's newest whole checkpoint."""

    model: Parcae
    trial: Trial
    step: int  # updates made; trial.n_steps when the run has ended


def load_trained(run_dir: Path, *, device: str = "auto") -> Trained:
    """Read the model of `run_dir`, finished or not.

    Raises:
        UserError: if there is no whole checkpoint, or no such device.
    """
    found = newest_checkpoint(run_dir / "checkpoints")
    if found is None:
        raise UserError(
            f"{run_dir}: there is no whole checkpoint in its folder checkpoints/; train the trial first"
        )
    try:
        model = model_of(found, str(resolve_device(device)))
    except DamagedCheckpoint as error:
        raise UserError(f"{found.path}: {error}; train the trial again") from None
    return Trained(model=model, trial=found.trial, step=found.step)


def model_of(found: Checkpoint, device: str = "cpu") -> Parcae:
    """The model of a checkpoint.

    Raises:
        DamagedCheckpoint: if its weights are not those of its trial's model.
    """
    config, seed = found.trial.model, found.trial.seed
    require_weights(build_model(config, seed=seed, device="meta"), found.weights)
    model = build_model(config, seed=seed, device=device)
    model.load_state_dict(found.weights, strict=True)
    return model
