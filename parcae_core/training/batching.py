"""Who computes which sequences of a global batch, and in which portions.

Both decisions change rounding only: depths and initial states belong to a sequence's index in the
global batch, and a portion's loss counts by its share of the sequences.
"""

from __future__ import annotations

import numpy as np

from parcae_core.accounting.flops import train_flops_per_token
from parcae_core.depth import DepthDraw, FixedDepth
from parcae_core.errors import UserError
from parcae_core.trial import Trial


def depths_of_step(trial: Trial, step: int) -> DepthDraw:
    """Loop steps of every sequence of the global batch; one with gradient for a Transformer."""
    if trial.depth is not None:
        return trial.depth.sample(trial.batch_sequences, seed=trial.seed, step=step)
    once = np.ones(trial.batch_sequences, dtype=np.int64)
    return DepthDraw(no_grad=once - 1, grad=once)


def select(draw: DepthDraw, sequences: np.ndarray) -> DepthDraw:
    """The depths of some sequences, in their order."""
    return DepthDraw(no_grad=draw.no_grad[sequences], grad=draw.grad[sequences])


def partition(draw: DepthDraw, n_processes: int) -> list[np.ndarray]:
    """Sequence indices of each process: equally many each, and nearly equal work.

    Sequences go, costliest first, to the process with the least work that still has room. A loop
    step with gradient costs three without: its backward pass is twice its forward.

    Raises:
        UserError: if the sequences do not divide among the processes.
    """
    n = draw.grad.size
    if n % n_processes:
        raise UserError(
            f"batch_sequences={n} does not divide among {n_processes} processes; "
            f"use a batch that is a multiple of {n_processes}, or another number of processes"
        )
    cost = draw.no_grad + 3 * draw.grad
    work = np.zeros(n_processes)
    shares: list[list[int]] = [[] for _ in range(n_processes)]
    for sequence in np.argsort(-cost, kind="stable"):
        room = [w for w in range(n_processes) if len(shares[w]) < n // n_processes]
        least = min(room, key=lambda w: work[w])
        shares[least].append(int(sequence))
        work[least] += cost[sequence]
    return [np.array(share, dtype=np.int64) for share in shares]


def portions(draw: DepthDraw, share: np.ndarray, size: int) -> list[np.ndarray]:
    """A share cut into micro-batches of at most `size` sequences of similar depth, deepest first.

    Of similar depth, so that few loop steps run with a nearly empty batch; deepest first, so that
    memory that does not suffice is found out at once.
    """
    if size >= share.size:
        return [share]
    deepest_first = share[np.lexsort((-draw.grad[share], -draw.no_grad[share]))]
    return [deepest_first[i : i + size] for i in range(0, share.size, size)]


class StepFlops:
    """Exact-rule FLOPs of a step from the depths that were drawn.

    The rule is affine in the steps without and with gradient, so three depths give its terms.
    """

    def __init__(self, trial: Trial) -> None:
        def cost(total: int, grad: int) -> float:
            depth = FixedDepth(mean_recurrence=total, mean_backprop_depth=grad)
            scheme = None if trial.depth is None else depth
            return train_flops_per_token(trial.model, scheme, trial.context, "exact").total

        self._context = trial.context
        self._no_grad = cost(2, 1) - cost(1, 1)
        self._grad = cost(2, 2) - cost(1, 1)
        self._once = cost(1, 1) - self._grad

    def __call__(self, draw: DepthDraw) -> float:
        per_token = (
            self._once * draw.grad.size
            + self._no_grad * int(draw.no_grad.sum())
            + self._grad * int(draw.grad.sum())
        )
        return per_token * self._context
