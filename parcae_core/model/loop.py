"""Running the core for sequences of different depth without computing what is thrown away.

Sequences are sorted deepest first, so that the ones still active in a step are always the first
m: a slice, never a gather, and finished states are set aside once instead of being masked in
every step. The published code computes every sequence to the deepest one and masks: 1.5 to 1.9
times the work (REFERENCE.md, "Quirks"). Equality with that definition, in outputs and every
gradient, is tested in tests/parcae_core/model/test_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from parcae_core.depth import DepthDraw

Step = Callable[[Tensor, int], Tensor]


def sort_by_depth(draw: DepthDraw) -> np.ndarray | None:
    """Order that puts the deepest sequences first, or None when they already are.

    Raises:
        ValueError: if no order sorts both phases (no shipped scheme draws such depths).
    """
    order = np.lexsort((-draw.grad, -draw.no_grad))
    for counts in (draw.no_grad[order], draw.grad[order]):
        if np.any(np.diff(counts) > 0):
            raise ValueError(
                "a depth draw gives one sequence more steps without gradient and fewer with it "
                "than another; sorted execution needs both to fall together"
            )
    return None if np.array_equal(order, np.arange(order.size)) else order


@dataclass(slots=True)
class Trace:
    """What `advance` can keep for the stability instruments."""

    before: Tensor | None = None  # the states one step before each sequence's last, (B, T, S)
    # root mean square of all states after each step, finished ones as they were held; scalars
    norms: list[Tensor] = field(default_factory=list)


def advance(
    step: Step, h: Tensor, counts: np.ndarray, *, trace: Trace | None = None
) -> tuple[Tensor, int]:
    """Apply `step` counts[i] times to sequence i.

    Args:
        step: (h (m, T, S), m) -> h (m, T, S), for the first m sequences.
        h: states, (B, T, S).
        counts: non-increasing numbers of steps, (B,).
        trace: filled when given; costs a pass over the states per step.

    Returns:
        The states after the steps, and the steps executed, summed over sequences.
    """
    executed = 0
    done: list[Tensor] = []  # finished states, shallowest first
    done_before: list[Tensor] = []
    m = h.shape[0]
    previous = h
    for t in range(int(counts[0]) + 1):
        active = int(np.searchsorted(-counts, -t, side="left"))  # how many have counts > t
        if active < m:
            done.append(h[active:])
            done_before.append(previous[active:])
            h = h[:active]
            m = active
        if m == 0:
            break
        previous = h
        h = step(h, m)
        executed += m
        if trace is not None:
            trace.norms.append(_root_mean_square([h, *done]))
    if trace is not None:
        trace.before = torch.cat(done_before[::-1]).detach()
    return done[0] if len(done) == 1 else torch.cat(done[::-1]), executed


def _root_mean_square(parts: list[Tensor]) -> Tensor:
    squares = torch.stack([p.detach().float().square().sum() for p in parts])
    return (squares.sum() / sum(p.numel() for p in parts)).sqrt()
