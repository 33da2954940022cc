"""A run's folder with a checkpoint of random weights: a trained model without the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from parcae_core.checkpoints.native import save_checkpoint
from parcae_core.model.parcae import Parcae, build_model
from tests.parcae_core.conftest import randomise
from tests.support.training import tiny_trial


def trained_run(folder: Path, **changes: Any) -> Path:
    """Write `folder/checkpoints/step-...`; a model of 64 tokens' context that reads bytes."""
    shape = {"context": 64, "d_model": 32, "d_ff": 32, "value_gate_width": 32}
    changes["model"] = shape | changes.get("model", {})
    trial = tiny_trial(**changes)
    save_checkpoint(
        folder / "checkpoints",
        trial=trial,
        step=trial.n_steps,
        progress={},
        weights=dict(random_model(trial.model).named_parameters()),
        optimizer={"none": torch.zeros(1)},
    )
    return folder


def random_model(config: Any) -> Parcae:
    model = build_model(config, seed=0)
    randomise(model)
    return model
