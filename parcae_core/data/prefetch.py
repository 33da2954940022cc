"""Batches read one step ahead in a thread, so that training does not wait for the disk."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from parcae_core.data.reader import RowReader


class Prefetch:
    """Batches of consecutive steps; each holds what the reader says for its step, nothing else.

    Args:
        last: index after the last step; nothing is read past it.
        pinned: keep the rows in page-locked memory, from which a GPU copies without waiting.
    """

    def __init__(self, reader: RowReader, n: int, *, last: int, pinned: bool) -> None:
        self._reader, self._n, self._last, self._pinned = reader, n, last, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[tuple[Tensor, int]]] | None = None

    def get(self, step: int) -> tuple[Tensor, int, float]:
        """Rows (n, row_tokens) int64 and epoch of a step, and the seconds spent waiting."""
        began = time.perf_counter()
        if self._next is None or self._next[0] != step:
            self._ask_for(step)
        assert self._next is not None
        rows, epoch = self._next[1].result()
        if step + 1 < self._last:
            self._ask_for(step + 1)
        return rows, epoch, time.perf_counter() - began

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _ask_for(self, step: int) -> None:
        self._next = (step, self._thread.submit(self._read, step))

    def _read(self, step: int) -> tuple[Tensor, int]:
        batch = self._reader.batch(step, self._n)
        rows = torch.from_numpy(batch.ids)
        return (rows.pin_memory() if self._pinned else rows), batch.epoch
