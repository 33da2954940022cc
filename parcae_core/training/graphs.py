"""Loss and gradient of a portion as a few CUDA graphs, captured once and replayed at every step.

    begin       prelude and what is computed once; keeps what the backward pass needs
    move[m]     a loop step without gradient over the first m sequences, in place; m in eighths
    finish      every loop step with gradient, coda, head, and the whole backward pass

A small model's step has some 1,700 launches, which take the host longer than the card; replayed,
it has one for each graph. `finish` reads what `begin` keeps, so that all share one pool of memory
and are replayed in the order of their capture. On a device without CUDA each graph is the function
that would be captured: tests hold this path to the masked definition. **Never run on a GPU yet.**
B sequences, T tokens, S state width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from parcae_core.depth import DepthDraw
from parcae_core.device import autocast
from parcae_core.kernels.linear_cross_entropy import linear_cross_entropy
from parcae_core.model.loop import static_widths, upload
from parcae_core.model.parcae import Parcae
from parcae_core.trial import Trial

_WARM_UPS = 3  # before a capture: lazy set-up of libraries, compilation, autotuning


class Graphs:
    """The graphs of one size of portion; built when the first such portion comes."""

    def __init__(self, model: Parcae, trial: Trial) -> None:
        self.model, self.trial = model, trial
        self.device = model.embedding.weight.device
        self._built: _Built | None = None

    def gradient(
        self, rows: Tensor, draw: DepthDraw, state: Tensor | None, weight: float
    ) -> tuple[Tensor, int]:
        """Add `weight` times a portion's gradient to the parameters.

        Args:
            rows: (B, T + 1) int64, deepest sequences first.
            draw: their depths.
            state: h_0, (B, T, S); None for a Transformer.

        Returns:
            Mean nats per token, unweighted, and loop steps executed, summed over sequences.
        """
        built = self._built
        if built is None or (built.rows.shape, built.weight) != (rows.shape, weight):
            self._built = _Built(self.model, self.trial, rows, state, weight)
        return self._built(rows, draw, state)


class _Built:
    def __init__(
        self, model: Parcae, trial: Trial, rows: Tensor, state: Tensor | None, weight: float
    ) -> None:
        self.model, self.precision, self.weight = model, trial.precision, weight
        self.device, self.batch = rows.device, rows.shape[0]
        # what graphs read and write: fixed places
        self.rows = rows.clone()
        self.h = None if state is None else state.clone()
        self.moving = torch.ones(self.batch, dtype=torch.bool, device=self.device)
        self.active = self.moving.repeat(trial.mean_backprop_depth, 1) if trial.depth else None
        self.loss = torch.zeros((), device=self.device)
        self.grads: list[Tensor | None] = []
        widths = static_widths(np.arange(1, self.batch + 1), self.batch) if trial.depth else []
        runs = {"begin": self._begin}
        runs |= {int(m): self._mover(int(m)) for m in sorted(set(widths))}
        runs["finish"] = self._finish
        self.replay = _captured(runs, self.device)

    def __call__(self, rows: Tensor, draw: DepthDraw, state: Tensor | None) -> tuple[Tensor, int]:
        self.rows.copy_(rows)
        self.replay["begin"]()
        executed = 0
        if self.h is not None:
            self.h.copy_(state)
            counts = draw.no_grad
            steps = counts > np.arange(int(counts.max(initial=0)))[:, None]
            widths = static_widths(steps.sum(1), self.batch)
            masks = upload(steps, self.device)
            for mask, m in zip(masks, widths.tolist(), strict=True):
                self.moving.copy_(mask)
                self.replay[m]()
            depth = np.arange(len(self.active))[:, None]
            self.active.copy_(upload(draw.grad > depth, self.device))
            executed = int(widths.sum()) + self.active.numel()
        self.replay["finish"]()
        self._accumulate()
        return self.loss, executed

    def _begin(self) -> None:
        with autocast(self.device, self.precision):
            ids = self.rows[:, :-1]
            if self.h is None:
                self.final = self.model.transformer_states(ids)
            else:
                self.prepared = self.model.prepare(ids)

    def _mover(self, m: int) -> Callable[[], None]:
        @torch.no_grad()
        def move() -> None:
            with autocast(self.device, self.precision):
                h = self.h[:m]
                h.copy_(
                    self.model.core_step(h, *self.model.first(self.prepared, m), self.moving[:m])
                )

        return move

    def _finish(self) -> None:
        params = [p for p in self.model.parameters() if p.requires_grad]
        before = [p.grad for p in params]
        for p in params:
            p.grad = None  # so that each replay writes the gradient anew, at one place
        with autocast(self.device, self.precision):
            if self.h is not None:
                h = self.h.clone().requires_grad_()  # as advance_static does
                for active in self.active:
                    first = self.model.first(self.prepared, self.batch)
                    h = self.model.core_step(h, *first, active)
                self.final = self.model.read_out(h, self.prepared)
            # liger's cross-entropy asks the device for a number, which no capture can
            loss = linear_cross_entropy(
                self.final, self.model.head_weight, self.rows[:, 1:], impl="torch"
            )
        (loss * self.weight).backward()
        self.loss.copy_(loss.detach())
        self.prepared = self.final = None  # the graph of autograd is spent
        self.grads = [p.grad for p in params]
        for p, grad in zip(params, before, strict=True):
            p.grad = grad

    def _accumulate(self) -> None:
        params = [p for p in self.model.parameters() if p.requires_grad]
        for p, grad in zip(params, self.grads, strict=True):
            if grad is None:
                continue
            if p.grad is None:
                p.grad = grad.clone()  # the next replay writes over it
            else:
                p.grad += grad


def _captured(
    runs: dict[str | int, Callable[[], None]], device: torch.device
) -> dict[str | int, Callable[[], None]]:
    """Each function as a graph's replay; the functions themselves where there is no CUDA."""
    if device.type != "cuda":
        return runs
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            for run in runs.values():
                run()
    torch.cuda.current_stream(device).wait_stream(stream)
    pool, graphs = torch.cuda.graph_pool_handle(), {}
    for name, run in runs.items():
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name], pool=pool, stream=stream):
            run()
    return {name: graph.replay for name, graph in graphs.items()}
