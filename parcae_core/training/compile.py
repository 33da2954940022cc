"""torch.compile, block by block, for batches that shrink from one loop step to the next.

A *kind* of block is what decides its code: the widths and heads of the layer, its MLP and norms,
and whether it has a gated value embedding. The presets have two kinds, with and without the gate.
One *graph* is one compilation of a kind, and a kind has at most three, for one sequence length and
dtype: with gradient on several sequences, with gradient on one, and without gradient on several. A
test counts them. One sequence without gradient runs as it is written: compiling it would make a
fourth graph for the shortest steps there are.

Two things keep the count there, each of which alone multiplies it:
- blocks, not the model: the loop around them runs another number of times for every batch;
- only the batch dimension is dynamic, and marked as such before the first call. `dynamic=True`
  makes every size a symbol and takes sizes that happen to be equal (batch 16, width 16) for one.
Past its limit torch runs a block eagerly without a word; here it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from parcae_core.errors import UserError
from parcae_core.model.parcae import Parcae

GRAPHS_PER_KIND = 3

BlockCall = Callable[..., Tensor]


def compile_blocks(
    model: Parcae, *, backend: str | Callable = "inductor", cuda_graphs: bool = False
) -> None:
    """torch.compile every block in place; names and weights stay.

    The compiler fuses torch's operations itself, so that the model's own kernels give way.

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
    model.use(replace(model.kernels, ops="torch"))
    import torch._dynamo.config as dynamo  # costs a second, which only those who ask should pay

    # torch counts the graphs of all blocks of a process together, since they share one forward
    dynamo.recompile_limit += GRAPHS_PER_KIND * n_kinds(model)
    dynamo.fail_on_recompile_limit_hit = True  # an eager block is not what was asked for
    for block in (*model.prelude, *model.core, *model.coda):
        block.forward = _any_batch(block.forward, backend, cuda_graphs)


def _any_batch(plain: BlockCall, backend: str | Callable, cuda_graphs: bool) -> BlockCall:
    compiled = torch.compile(plain, backend=backend)
    replayed = torch.compile(plain, mode="reduce-overhead") if cuda_graphs else None

    def call(*inputs: object) -> Tensor:
        batched = [x for x in inputs if isinstance(x, Tensor) and x.ndim >= 3]  # (B, T, ...)
        single, with_grad = batched[0].shape[0] == 1, torch.is_grad_enabled()
        if single and not with_grad:
            return plain(*inputs)
        for x in batched if not single else ():
            torch._dynamo.mark_dynamic(x, 0)
        if replayed is None or with_grad:
            # Replaying what is kept for a backward pass would need memory, and a recording, of
            # its own for every loop step of every sequence of batch sizes that depths can draw
            return compiled(*inputs)
        # A step of its own, so that recordings are one per batch size and not one per sequence of
        # batch sizes; the next replay overwrites the output, hence the copy
        torch.compiler.cudagraph_mark_step_begin()
        return replayed(*inputs).clone()

    return call


def n_kinds(model: Parcae) -> int:
    """Kinds of block in a model, as this module counts them."""
    c = model.config
    return len(
        {
            (c.layer_width(i), c.layer_heads(i), c.layer_ff(i), c.has_value_embedding(i))
            for i in range(c.n_layers)
        }
    )
