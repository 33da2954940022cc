"""Running the core for sequences of different depth without computing what is thrown away.

Sequences are sorted deepest first, so that the ones still active in a step are always the first
m: a slice, never a gather, and finished states are set aside once instead of being masked in
every step. The published code computes every sequence to the deepest one and masks: 1.5 to 1.9
times the work (REFERENCE.md, "Quirks"). Equality with that definition, in outputs and every
gradient, is tested in tests/parcae_core/model/test_loop.py.

`advance_static` does a few percent more than the ideal work, in at most nine shapes: what is
compiled or replayed then is a handful of graphs, where every number of sequences would be one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from parcae_core.depth import DepthDraw

Step = Callable[..., Tensor]
N_WIDTHS = 8  # numbers of sequences that the steps without gradient run with


def as_draw(n_loops: int | DepthDraw, batch: int) -> DepthDraw:
    """The depths of a batch: a draw that fits it, or one number of loops, all with gradient."""
    if isinstance(n_loops, DepthDraw):
        if n_loops.grad.shape != (batch,) or n_loops.no_grad.shape != (batch,):
            raise ValueError(
                f"the depth draw is for {n_loops.grad.shape[0]} sequences, the batch has {batch}"
            )
        if n_loops.total.min() < 1:
            raise ValueError("a depth draw has a sequence with no loop step; at least 1 is needed")
        return n_loops
    if n_loops < 1:
        raise ValueError(f"n_loops is {n_loops}; it must be >= 1")
    return DepthDraw(
        no_grad=np.zeros(batch, dtype=np.int64), grad=np.full(batch, n_loops, dtype=np.int64)
    )


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


def static_widths(active: np.ndarray, batch: int) -> np.ndarray:
    """Numbers of active sequences, rounded up to eighths of the batch."""
    unit = -(-batch // N_WIDTHS)
    return np.minimum(-(-active // unit) * unit, batch)


def advance_static(
    step: Step, h: Tensor, counts: np.ndarray, *, trace: Trace | None = None
) -> tuple[Tensor, int]:
    """`advance` in shapes that repeat: finished sequences run along and are held.

    With gradient every step runs all B sequences, without it the active ones rounded up to eighths
    of B. Held sequences pass their state and its gradient on unchanged.

    Args:
        step: (h (m, T, S), m, active (m,) bool) -> h (m, T, S), held where not active.
    """
    batch, executed = h.shape[0], 0
    active = counts > np.arange(int(counts.max(initial=0)))[:, None]  # (steps, B)
    widths = np.full(len(active), batch)
    if not torch.is_grad_enabled():
        widths = static_widths(active.sum(1), batch)
    elif not h.requires_grad:
        h = h.detach().requires_grad_()  # else the first step would be a graph of its own
    mask = upload(active, h.device)
    before = h.detach()
    for t, m in enumerate(widths.tolist()):
        if trace is not None:
            before = torch.where(mask[t, :, None, None], h.detach(), before)
        moved = step(_rows(h, m), m, _rows(mask[t], m))
        h = moved if m == batch else torch.cat([moved, h[m:]])
        executed += m
        if trace is not None:
            trace.norms.append(_root_mean_square([h]))
    if trace is not None:
        trace.before = before
    return h, executed


def upload(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """What lies on the CPU, on the device; a GPU is not waited for."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _rows(x: Tensor, m: int) -> Tensor:
    return x if m == x.shape[0] else x[:m]


def _root_mean_square(parts: list[Tensor]) -> Tensor:
    squares = torch.stack([p.detach().float().square().sum() for p in parts])
    return (squares.sum() / sum(p.numel() for p in parts)).sqrt()
