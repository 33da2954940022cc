"""The model a run has left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parcae_core.checkpoints.native import newest_checkpoint
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
    where = resolve_device(device)
    model = build_model(found.trial.model, seed=found.trial.seed, device=str(where))
    model.load_state_dict(found.weights, strict=True)
    return Trained(model=model, trial=found.trial, step=found.step)
