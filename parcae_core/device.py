"""Where a model runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from parcae_core.errors import UserError

# Of one process on a GPU beside its tensors: context, kernels, cuBLAS workspace. H100s are reported to
# take 0.5 to 0.7 GiB; not measured here.
_CONTEXT_BYTES = 3 << 28


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


def device_name(device: torch.device) -> str:
    """The device as results record it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """bfloat16 autocast, or nothing for float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def keep_to_share(share: float) -> None:
    """Let this process's tensors take no more than its share of the GPU's memory.

    CUDA_VISIBLE_DEVICES is shared by fractions of a GPU; memory is not divided unless asked.
    """
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total))


def memory_fraction(share: float, total_bytes: int) -> float:
    """The part of a GPU's memory that a process's tensors may take, for its share of the GPU.

    Each process also has a context, which torch's allocator does not count.
    """
    return max(share - _CONTEXT_BYTES / total_bytes, share / 2)
