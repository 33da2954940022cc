"""Loss and gradient of one global batch, in as many portions as memory asks for.

B sequences in the global batch, T tokens each, S state width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from parcae_core.depth import DepthDraw
from parcae_core.device import autocast
from parcae_core.model.loop import sort_by_depth, upload
from parcae_core.model.parcae import Parcae
from parcae_core.seeds import STATES_ON_DEVICE
from parcae_core.training.batching import portions, select
from parcae_core.training.distributed import Distributed
from parcae_core.training.graphs import Graphs
from parcae_core.trial import Trial

# Over sequences; other instruments are not
_ROOT_MEAN_SQUARES = ("state_norm", "residual_norm", "loop_norm")


@dataclass(slots=True)
class LocalLoss:
    """One process's part of a global batch; its part of the gradient is in the parameters."""

    loss: Tensor  # its terms of the global mean, nats per token, float64 scalar
    core_sequence_steps: int = 0
    mean_squares: dict[str, float] = field(default_factory=dict)  # its terms, by instrument
    radius: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """What a global batch gave; its gradient is in the parameters."""

    loss: float  # mean nats per token
    core_sequence_steps: int  # executed
    instruments: dict[str, float]


def initial_states(
    model: Parcae, sequences: Sequence[int], trial: Trial, *, step: int
) -> Tensor | None:
    """h_0 of sequences of the global batch, (n, T, S); None for a Transformer.

    A function of (seed, step, sequence) and of the kind of device. On a GPU the numbers are drawn
    there: drawing a step's on the CPU would take longer than the step.
    """
    if trial.depth is None:
        return None
    device = model.embedding.weight.device
    if device.type == "cpu":
        return model.seeded_state(sequences, trial.context, seed=trial.seed, step=step)
    return drawn_on(device, model, sequences, trial, step=step)


def drawn_on(
    device: torch.device, model: Parcae, sequences: Sequence[int], trial: Trial, *, step: int
) -> Tensor:
    """h_0 of sequences of the global batch from a device's own generator, (n, T, S)."""
    key = np.random.SeedSequence((trial.seed, STATES_ON_DEVICE, step))
    seeds = key.generate_state(trial.batch_sequences, np.uint64) >> np.uint64(1)  # signed in torch
    generator = torch.Generator(device)
    states = [
        model.initial_state(1, trial.context, generator=generator.manual_seed(int(seeds[i])))
        for i in sequences
    ]
    return torch.cat(states)


def local_gradient(
    model: Parcae,
    trial: Trial,
    *,
    rows: Tensor,
    draw: DepthDraw,
    share: np.ndarray,
    micro_batch: int,
    step: int,
    instruments: bool = False,
    graphs: Graphs | None = None,
) -> LocalLoss:
    """Add this process's part of the global batch's gradient to the parameters.

    Every portion's mean loss is weighted by its share of the B sequences, so that neither the
    size of the portions nor the number of processes changes the gradient beyond rounding.

    Args:
        rows: the global batch, (B, T + 1) int64; each process reads all and uses its share.
        draw: depths of the B sequences.
        share: indices of this process's sequences.
        micro_batch: sequences per portion, at most.
        graphs: replay portions of `micro_batch` sequences, but for those that are measured.
    """
    device = model.embedding.weight.device
    local = LocalLoss(loss=torch.zeros((), dtype=torch.float64, device=device))
    for part in portions(draw, share, micro_batch):
        order = sort_by_depth(select(draw, part))  # here, so that the device need not gather
        part = part if order is None else part[order]
        ids, depths = upload(rows[torch.from_numpy(part)], device), select(draw, part)
        state = initial_states(model, part, trial, step=step)
        weight = part.size / draw.grad.size
        if graphs is not None and part.size == micro_batch and not instruments:
            loss, steps = graphs.gradient(ids, depths, state, weight)
            local.loss += loss.double() * weight
            local.core_sequence_steps += steps
            continue
        with autocast(device, trial.precision):
            output = model(
                ids[:, :-1],
                1 if trial.depth is None else depths,
                targets=ids[:, 1:],
                state=state,
                instruments=instruments,
            )
        (output.loss * weight).backward()
        local.loss += output.loss.detach().double() * weight
        local.core_sequence_steps += output.core_sequence_steps
        for name, value in _padded(output.instruments, trial).items():
            if name.startswith(_ROOT_MEAN_SQUARES):
                local.mean_squares[name] = local.mean_squares.get(name, 0.0) + weight * value**2
            else:
                local.radius[name] = value
    return local


def _padded(instruments: dict[str, float], trial: Trial) -> dict[str, float]:
    """A portion of shallow sequences ends early and is held: every portion names every step."""
    if not instruments:
        return instruments
    names = [f"loop_norm_{i:02d}" for i in range(1, trial.mean_backprop_depth + 1)]
    return dict.fromkeys(names, instruments["state_norm"]) | instruments


def all_reduce_gradient(model: Parcae, local: LocalLoss, group: Distributed) -> BatchLoss:
    """Sum the processes' losses and gradients; afterwards every process holds the whole."""
    squares = local.mean_squares
    counts = [local.core_sequence_steps, *squares.values()]
    sums = local.loss.new_tensor(counts)
    loss, steps, *means = group.sum(torch.cat([local.loss.view(1), sums])).tolist()
    group.sum_each(p.grad for p in model.parameters() if p.grad is not None)
    roots = {name: mean**0.5 for name, mean in zip(squares, means, strict=True)}
    return BatchLoss(loss, round(steps), local.radius | roots)
