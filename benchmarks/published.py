"""The published implementation, from a clone that the user names; nothing of it is part of this."""

from __future__ import annotations

import sys

import torch

from benchmarks.cases import MEAN_BACKPROP_DEPTH, MEAN_RECURRENCE, Case, Step
from parcae_core.device import autocast

PUBLISHED = "published"  # the variant's name in rows


def published_step(case: Case, folder: str) -> Step:
    """Forward and backward of the published model of the same shape.

    It draws its own depths from the same distribution, seeded by the step: compare medians.
    """
    sys.path.insert(0, folder)
    from parcae_lm.models.parcae.config import ParcaeConfig

    from parcae_core.checkpoints.published_config import upstream_settings

    settings = upstream_settings(
        case.config, mean_recurrence=MEAN_RECURRENCE, mean_backprop_depth=MEAN_BACKPROP_DEPTH
    )
    del settings["_class_name"]
    settings["recurrent_num_attention_heads"] = None
    model: torch.nn.Module = ParcaeConfig(**settings).construct_model().to(case.device)
    ids, targets, _ = case.tensors

    def step(number: int) -> None:
        model.step = number
        with autocast(case.device, case.precision):
            model(ids, labels=targets)["loss"].backward()
        model.zero_grad(set_to_none=True)

    return step
