"""Where a model runs, and whether it is compiled there."""

from __future__ import annotations

from dataclasses import replace

import torch

from parcae_core.errors import UserError
from parcae_core.model import Parcae


def resolve_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The torch device of an Execution, with its index if it is a GPU.

    Args:
        local_rank: which GPU "auto" and "cuda" mean, for one of several processes on a machine.

    Raises:
        UserError: if there is no such device on this machine.
    """
    n_gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if n_gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'device is {name!r}; give "auto", "cpu", "cuda" or "cuda:<n>"') from error
    if device.type != "cuda":
        return device
    index = local_rank if device.index is None else device.index
    if index >= n_gpus:
        raise UserError(
            f"device is {name!r}, GPU {index}, and torch sees {n_gpus} GPUs here; use another device, "
            "fewer processes, or a torch build for this machine's GPU"
        )
    return torch.device("cuda", index)


def compile_blocks(model: Parcae) -> None:
    """torch.compile every block in place; names and weights stay.

    Block by block, because the loop around them runs another number of times for every batch.
    The compiler fuses the plain operations itself, so that the model's own kernels give way.
    """
    model.use(replace(model.kernels, ops="torch"))
    import torch._dynamo.config as settings  # costs a second, which only those who ask should pay

    # All blocks share one forward, and each kind of block, with and without gradient, on one and
    # on several sequences, is a graph of its own. Past the limit torch would run eagerly instead.
    settings.recompile_limit = max(settings.recompile_limit, 64)
    for block in (*model.prelude, *model.core, *model.coda):
        block.compile(dynamic=True)


def device_name(device: torch.device) -> str:
    """The device as results record it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
