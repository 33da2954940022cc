"""torch.compile, block by block, for batches that shrink from one loop step to the next.

A *kind* of block is what decides its code: the widths and heads of the layer, its MLP and norms,
and whether it has a gated value embedding. The presets have two kinds, with and without the gate.
One *graph* is one compilation of a kind: one with gradient, one without, whatever the number of
sequences, 1 included. At most `GRAPHS_PER_KIND` for one sequence length, dtype and device; a test
counts them. The four kinds of a model whose core has another width still fit torch's own limit of
8, past which it would run eagerly without a word; here it raises instead.

Three things keep the count there, each of which alone multiplies it:
- blocks, not the model: the loop around them runs another number of times for every batch;
- only the batch dimension is dynamic, and marked as such before the first call. `dynamic=True`
  makes every size a symbol and takes sizes that happen to be equal (batch 16, width 16) for one;
- no special case for one sequence, which is what the last steps of nearly every batch run on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from parcae_core.errors import UserError
from parcae_core.model import Parcae

GRAPHS_PER_KIND = 2

BlockCall = Callable[..., Tensor]


def compile_blocks(
    model: Parcae, *, backend: str | Callable = "inductor", cuda_graphs: bool = False
) -> None:
    """torch.compile every block in place; names and weights stay.

    Args:
        backend: of torch.compile.
        cuda_graphs: replay the blocks that run without gradient as CUDA graphs, one for every
            number of sequences. Saves launches where a block is shorter than its launches, and
            costs a copy of each block's inputs and output. Never run or measured on a GPU yet.

    Raises:
        UserError: if CUDA graphs are asked for on another device.
    """
    device = model.embedding.weight.device
    if cuda_graphs and device.type != "cuda":
        raise UserError(
            f"cuda_graphs=True on {device}; CUDA graphs need a CUDA device. Use device='cuda' or "
            "leave cuda_graphs off: compile=True alone works on every device."
        )
    import torch._dynamo.config as dynamo  # costs a second, which only those who ask should pay
    import torch.fx.experimental._config as symbols

    symbols.backed_size_oblivious = True  # one graph for 1 sequence and for many
    dynamo.fail_on_recompile_limit_hit = True  # an eager block is not what was asked for
    for block in (*model.prelude, *model.core, *model.coda):
        block.forward = _any_batch(block.forward, backend, cuda_graphs)


def _any_batch(plain: BlockCall, backend: str | Callable, cuda_graphs: bool) -> BlockCall:
    compiled = torch.compile(plain, backend=backend)
    replayed = torch.compile(plain, mode="reduce-overhead") if cuda_graphs else None
    traced: set[bool] = set()  # with gradient, without

    def call(x: Tensor, rotary, value_embedding: Tensor | None) -> Tensor:
        with_grad = torch.is_grad_enabled()
        if with_grad not in traced:
            traced.add(with_grad)
            if x.shape[0] == 1:  # a graph traced on one sequence would hold for one alone
                call(_twice(x), rotary, _twice(value_embedding))
        torch._dynamo.mark_dynamic(x, 0)
        if value_embedding is not None:
            torch._dynamo.mark_dynamic(value_embedding, 0)
        if replayed is None or with_grad:
            # Replaying what is kept for a backward pass would need memory, and a recording, of
            # its own for every loop step of every sequence of batch sizes that depths can draw
            return compiled(x, rotary, value_embedding)
        # A step of its own, so that recordings are one per batch size and not one per sequence of
        # batch sizes; the next replay overwrites the output, hence the copy
        torch.compiler.cudagraph_mark_step_begin()
        return replayed(x, rotary, value_embedding).clone()

    return call


def _twice(x: Tensor | None) -> Tensor | None:
    return None if x is None else torch.cat([x, x])
