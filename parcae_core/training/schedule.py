"""Learning rate and weight decay as functions of the step. Free of torch.

A run of n_steps makes exactly n_steps updates, steps 0 to n_steps - 1, none of them with a rate of
zero: the straight line of the cool-down meets zero at n_steps, one step after the last.
"""

from __future__ import annotations

import math


def constant_steps(n_steps: int, cooldown_share: float) -> int:
    """Updates before the cool-down, warm-up included: the first that has a falling rate comes next.

    Runs that differ in length alone make the same updates up to here, if their weight decay waits
    for the cool-down as well.
    """
    return n_steps - math.floor(cooldown_share * n_steps)


def learning_rate_scale(
    step: int, *, n_steps: int, warmup_steps: int = 0, cooldown_share: float = 0.5
) -> float:
    """Factor on every base learning rate, in (0, 1]: rising line, constant, falling line to 0.

    Args:
        step: 0-based index of the update.
        cooldown_share: share of all steps, at the end, over which the rate falls.

    Raises:
        ValueError: if `step` lies outside the run.

    Source: Parcae (arXiv:2604.12946), "Training algorithm" (no warm-up, last half falling).
    """
    _check(step, n_steps)
    scale = 1.0
    if warmup_steps:
        scale = min(scale, (step + 1) / warmup_steps)
    if cooldown_share:
        scale = min(scale, (n_steps - step) / (cooldown_share * n_steps))
    return scale


def weight_decay_scale(step: int, *, n_steps: int, cooldown_share: float | None = None) -> float:
    """Factor on Muon's weight decay, in (0, 1]: a line from 1 at the first step towards 0.

    Args:
        cooldown_share: the line begins with the rate's cool-down instead, and the factor is 1 before.

    Raises:
        ValueError: if `step` lies outside the run.

    Source: Parcae (arXiv:2604.12946), "Training algorithm".
    """
    if cooldown_share is not None:
        return learning_rate_scale(step, n_steps=n_steps, cooldown_share=cooldown_share)
    _check(step, n_steps)
    return 1.0 - step / n_steps


def _check(step: int, n_steps: int) -> None:
    if not 0 <= step < n_steps:
        raise ValueError(f"step is {step}; a run of {n_steps} steps has 0 to {n_steps - 1}")
