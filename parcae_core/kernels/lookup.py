"""Rows of several tables at the same tokens; one sort of the tokens serves every table's gradient.

ids (B, T), tables (V, W_i) -> rows (B, T, W_i);  dtable_i[v] = sum over tokens with id v of drows_i.
torch sorts the tokens anew for each table and waits for none of it to be shared. Here they are sorted once; a
program sums a chunk of sorted tokens, writes the sums of ids that lie inside it, and leaves those at
its two edges, which a second kernel joins. No atomics: two runs are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from parcae_core.kernels.dispatch import LAUNCH, Impl, launched, operator, tl, triton, use_triton

_CHUNK = 32  # sorted tokens of a program
_WIDTH = 256  # channels of a program, at most


def lookup_ref(ids: Tensor, tables: Sequence[Tensor]) -> list[Tensor]:
    """The definition."""
    return [F.embedding(ids, table) for table in tables]


if triton is not None:

    @triton.jit
    def _lookup_bwd_kernel(
        drows, order, ids, dtable, edges, N, W, CHUNK: tl.constexpr, BW: tl.constexpr
    ):
        """Sums over one chunk of sorted tokens; edges (chunks, 2, W): open at its start, at its end."""
        chunk = tl.program_id(0)
        cols = tl.program_id(1) * BW + tl.arange(0, BW)
        start = chunk * CHUNK
        b_sum = tl.zeros([BW], dtype=tl.float32)
        is_open = tl.load(ids + start - 1, mask=start > 0, other=-1) == tl.load(ids + start)
        for at in range(start, tl.minimum(start + CHUNK, N)):
            token = tl.load(ids + at)
            row = tl.load(order + at).to(tl.int64)
            b_sum += tl.load(drows + row * W + cols, mask=cols < W, other=0.0).to(tl.float32)
            ends = tl.load(ids + at + 1, mask=at + 1 < N, other=-1) != token
            last = at + 1 == start + CHUNK
            # a scalar condition goes into the bound: under the interpreter it is no mask with a block
            whole = tl.where(ends & (is_open == 0), W, 0)
            edge = tl.where((ends & is_open) | (last & (ends == 0)), W, 0)
            place = dtable + token.to(tl.int64) * W + cols
            tl.store(place, b_sum.to(dtable.dtype.element_ty), mask=cols < whole)
            place = edges + (chunk * 2 + tl.where(is_open, 0, 1)).to(tl.int64) * W + cols
            tl.store(place, b_sum, mask=cols < edge)
            b_sum = tl.where(ends, 0.0, b_sum)
            is_open = is_open & (ends == 0)

    @triton.jit
    def _lookup_join_kernel(ids, edges, dtable, N, W, CHUNK: tl.constexpr, BW: tl.constexpr):
        """The sum of an id that begins in this chunk and goes on in the next ones."""
        chunk = tl.program_id(0)
        cols = tl.program_id(1) * BW + tl.arange(0, BW)
        start = chunk * CHUNK
        end = start + CHUNK
        token = tl.load(ids + end - 1, mask=end - 1 < N, other=-2)
        goes_on = tl.load(ids + end, mask=end < N, other=-1) == token
        begins = (tl.load(ids + start) != token) | (
            tl.load(ids + start - 1, mask=start > 0, other=-1) != token
        )
        more = goes_on & begins
        width = tl.where(more, W, 0)
        b_sum = tl.load(
            edges + (chunk * 2 + 1).to(tl.int64) * W + cols, mask=cols < width, other=0.0
        )
        while more:
            chunk += 1
            end += CHUNK
            b_sum += tl.load(edges + (chunk * 2).to(tl.int64) * W + cols, mask=cols < W, other=0.0)
            more = tl.load(ids + end - 1, mask=end - 1 < N, other=-2) == token
            more = more & (tl.load(ids + end, mask=end < N, other=-1) == token)
        place = dtable + token.to(tl.int64) * W + cols
        tl.store(place, b_sum.to(dtable.dtype.element_ty), mask=cols < width)

    @operator
    def _lookup(ids: Tensor, tables: Sequence[Tensor]) -> list[Tensor]:
        return [F.embedding(ids, table) for table in tables]

    @operator
    def _lookup_bwd(ids: Tensor, drows: Sequence[Tensor], n_ids: int) -> list[Tensor]:
        ids, order = torch.sort(ids.flatten(), stable=True)
        n, n_chunks = ids.numel(), triton.cdiv(ids.numel(), _CHUNK)
        found = []
        for d in drows:
            d, width = d.contiguous(), d.shape[-1]
            dtable = torch.zeros(n_ids, width, device=d.device, dtype=d.dtype)
            edges = torch.empty(n_chunks, 2, width, device=d.device, dtype=torch.float32)
            block = min(_WIDTH, triton.next_power_of_2(width))
            grid = (n_chunks, triton.cdiv(width, block))
            launched(_lookup_bwd_kernel)[grid](
                d, order, ids, dtable, edges, n, width, CHUNK=_CHUNK, BW=block, **LAUNCH
            )
            launched(_lookup_join_kernel)[grid](
                ids, edges, dtable, n, width, CHUNK=_CHUNK, BW=block, **LAUNCH
            )
            found.append(dtable)
        return found

    def _keep(ctx, inputs, output) -> None:
        ids, tables = inputs
        ctx.n_ids = tables[0].shape[0]
        ctx.save_for_backward(ids)

    def _gradient(ctx, drows: Sequence[Tensor]):
        return None, _lookup_bwd(*ctx.saved_tensors, list(drows), ctx.n_ids)

    _lookup.register_autograd(_gradient, setup_context=_keep)


def lookup(ids: Tensor, tables: Sequence[Tensor], *, impl: Impl = "auto") -> list[Tensor]:
    """Rows of every table at the tokens, each (..., W_i).

    Args:
        ids: tokens, (...), int64, all below V.
        tables: (V, W_i) each, of one dtype.

    Raises:
        ValueError: if the tables have different lengths, or the kernel was asked for and cannot run.
    """
    if len({table.shape[0] for table in tables}) != 1:
        raise ValueError(
            f"lookup: tables {[tuple(t.shape) for t in tables]} must have one number of rows"
        )
    if use_triton("lookup", impl, *tables):
        return _lookup(ids, tables)
    return lookup_ref(ids, tables)
