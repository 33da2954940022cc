"""The processes that train one model together, or the one that does it alone.

Data parallel with whole gradients: every process computes its sequences' share of the gradient,
the shares are summed, and every process makes the same update. The sums are made after the last
micro-batch, in few large pieces, and not by hooks during the backward pass: the loop uses a
parameter many times per backward, and small models would spend their time on small messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

_PIECE_ELEMENTS = 1 << 24  # 64 MiB of float32 per message


class Distributed:
    """This process's place among those of the default process group; alone when there is none."""

    def __init__(self) -> None:
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.n = dist.get_world_size() if self.together else 1
        # torchrun tells each process its place on its machine this way
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0")) if self.together else 0

    @property
    def is_first(self) -> bool:
        """True for the one process that writes files and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over processes, in place."""
        if self.n > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is raised on any process."""
        if self.n == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item())

    @torch.no_grad()
    def sum_each(self, tensors: Iterable[Tensor]) -> None:
        """Sum every tensor over processes, in place, with few messages."""
        if self.n == 1:
            return
        for piece in _pieces(tensors):
            flat = self.sum(torch.cat([t.flatten() for t in piece]))
            parts = flat.split([t.numel() for t in piece])
            torch._foreach_copy_(piece, [p.view_as(t) for p, t in zip(parts, piece, strict=True)])

    def gather(self, value: object) -> list:
        """Every process's value of a small picklable object, in order of rank, on every process."""
        if self.n == 1:
            return [value]
        box: list = [None] * self.n
        dist.all_gather_object(box, value)
        return box

    def from_first(self, value: object) -> object:
        """The first process's value of a small picklable object, on every process."""
        if self.n == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


def _pieces(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    piece: list[Tensor] = []
    for tensor in tensors:
        if piece and sum(t.numel() for t in piece) + tensor.numel() > _PIECE_ELEMENTS:
            yield piece
            piece = []
        piece.append(tensor)
    if piece:
        yield piece
