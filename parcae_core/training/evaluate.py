"""Validation loss at many numbers of loops, in one pass over the loop.

The state after T steps is the same whether T or more steps follow, so the test-time curve
T = 1..K needs K core steps and one coda per requested T, not 1 + 2 + ... + K.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from parcae_core.kernels.linear_cross_entropy import token_losses
from parcae_core.model.parcae import Parcae
from parcae_core.result import EvalRow


class Rows(Protocol):
    """What `evaluate` reads: parcae_core.data.reader.RowReader, or anything like it."""

    n_rows: int
    token_bytes: np.ndarray  # bytes each id stands for, (V,); 0 for special tokens

    def rows(self, start: int, n: int) -> np.ndarray: ...

    def labels(self, rows: np.ndarray) -> np.ndarray | None: ...


@torch.no_grad()
def evaluate(
    model: Parcae,
    reader: Rows,
    *,
    loops: Sequence[int],
    n_sequences: int,
    batch_sequences: int = 32,
    seed: int = 0,
) -> tuple[EvalRow, ...]:
    """Mean validation loss at every requested number of loops, and by label where there are labels.

    Args:
        reader: validation rows of context + 1 ids; the first `n_sequences` are used.
        loops: numbers of loop steps, each >= 1; a Transformer has only 1.
        seed: of the initial states, which depend on the row and not on the batching.

    Raises:
        ValueError: no loops, a number below 1, other than 1 for a Transformer, or fewer
            validation rows than asked for.
    """
    wanted = sorted(set(loops))
    if not wanted or wanted[0] < 1:
        raise ValueError(f"loops is {list(loops)}; give at least one number, each >= 1")
    if model.config.is_transformer and wanted != [1]:
        raise ValueError(f"a fixed-depth Transformer runs once; loops is {wanted}")
    if not 1 <= n_sequences <= reader.n_rows:
        raise ValueError(
            f"n_sequences is {n_sequences}; the validation split has {reader.n_rows} rows"
        )
    device = model.embedding.weight.device
    token_bytes = torch.as_tensor(np.asarray(reader.token_bytes, dtype=np.int64), device=device)
    nats = dict.fromkeys(wanted, 0.0)
    text_nats = dict.fromkeys(wanted, 0.0)
    by_label = {t: _LabelSums() for t in wanted}
    n_tokens = n_bytes = 0
    for start in range(0, n_sequences, batch_sequences):
        n = min(batch_sequences, n_sequences - start)
        stored = np.asarray(reader.rows(start, n), dtype=np.int64)
        labels = reader.labels(stored)
        rows = torch.from_numpy(stored).to(device)
        ids, targets = rows[:, :-1], rows[:, 1:]
        in_text = token_bytes[targets]
        n_tokens += targets.numel()
        n_bytes += int(in_text.sum())
        for t, final in _finals(model, ids, range(start, start + n), wanted, seed):
            losses = token_losses(final, model.head_weight, targets).double()
            nats[t] += losses.sum().item()
            text_nats[t] += losses[in_text > 0].sum().item()
            if labels is not None:
                by_label[t].add(labels, losses.cpu().numpy())
    return tuple(
        EvalRow(
            n_loops=t,
            val_loss=nats[t] / n_tokens,
            val_bpb=text_nats[t] / (math.log(2) * n_bytes) if n_bytes else math.nan,
            n_tokens=n_tokens,
            by_label=by_label[t].means(),
        )
        for t in wanted
    )


class _LabelSums:
    """Tokens and nats by label, over batches."""

    def __init__(self) -> None:
        self.n, self.nats = np.zeros(0, np.int64), np.zeros(0)

    def add(self, labels: np.ndarray, losses: np.ndarray) -> None:
        flat = labels.ravel()
        length = max(len(self.n), int(flat.max()) + 1)
        self.n = np.bincount(flat, minlength=length) + np.pad(self.n, (0, length - len(self.n)))
        nats = np.bincount(flat, weights=losses.ravel(), minlength=length)
        self.nats = nats + np.pad(self.nats, (0, length - len(self.nats)))

    def means(self) -> dict[str, tuple[int, float]] | None:
        """label -> (tokens, nats per token); None if no batch had labels, and 0 is not one."""
        if not len(self.n):
            return None
        return {
            str(i): (int(self.n[i]), float(self.nats[i] / self.n[i]))
            for i in range(1, len(self.n))
            if self.n[i]
        }


def _finals(model: Parcae, ids: Tensor, rows: range, wanted: list[int], seed: int):
    """(T, final states (B, T, D)) for each wanted number of loops, in rising order."""
    if model.config.is_transformer:
        yield 1, model.transformer_states(ids)
        return
    state = model.seeded_state(rows, ids.shape[1], seed=seed)
    for t, (h, prepared) in zip(range(1, wanted[-1] + 1), model.states(ids, state), strict=False):
        if t in wanted:
            yield t, model.read_out(h, prepared)
