"""Validation loss at many numbers of loops, in one pass over the loop.

The state after T steps is the same whether T or more steps follow, so the test-time curve
T = 1..K needs K core steps and one coda per requested T, not 1 + 2 + ... + K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from parcae_core.data.reader import RowReader
from parcae_core.kernels.linear_cross_entropy import token_losses
from parcae_core.model.parcae import Parcae
from parcae_core.result import EvalRow
from parcae_core.training.distributed import Distributed


@torch.no_grad()
def evaluate(
    model: Parcae,
    reader: RowReader,
    *,
    loops: Sequence[int],
    n_sequences: int,
    batch_sequences: int = 32,
    seed: int = 0,
    group: Distributed | None = None,
) -> tuple[EvalRow, ...]:
    """Mean validation loss at every requested number of loops, and by label where there are labels.

    The processes of a group take turns at the batches, and all get the whole result.

    Args:
        reader: validation rows of context + 1 ids; the first `n_sequences` are used.
        loops: numbers of loop steps, each >= 1; a Transformer has only 1.
        seed: of the initial states, which depend on the row and not on the batching.
        group: None: the default process group's, or this process alone.

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
    group, sums = group or Distributed(), {t: _Sums() for t in wanted}
    for start in range(group.rank * batch_sequences, n_sequences, group.n * batch_sequences):
        n = min(batch_sequences, n_sequences - start)
        stored = np.asarray(reader.rows(start, n), dtype=np.int64)
        labels = reader.labels(stored)
        rows = torch.from_numpy(stored).to(device)
        ids, targets = rows[:, :-1], rows[:, 1:]
        in_text = token_bytes[targets]
        for t, final in final_states(model, ids, range(start, start + n), wanted, seed):
            losses = token_losses(final, model.head_weight, targets).double()
            sums[t].add(losses, in_text, labels)
    shares = group.gather(sums)
    return tuple(sum((share[t] for share in shares), _Sums()).row(t) for t in wanted)


@dataclass(slots=True)
class _Sums:
    """Of tokens' losses after one number of loops, over batches and processes."""

    n_tokens: int = 0
    n_bytes: int = 0
    nats: float = 0.0
    text_nats: float = 0.0  # of tokens that stand for bytes
    # by label, where there are labels, and 0 is not one
    label_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    label_nats: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, losses: Tensor, in_text: Tensor, labels: np.ndarray | None) -> None:
        """A batch: nats and bytes of each token, (B, T), and its labels."""
        self.n_tokens += losses.numel()
        self.n_bytes += int(in_text.sum())
        self.nats += losses.sum().item()
        self.text_nats += losses[in_text > 0].sum().item()
        if labels is not None:
            flat = labels.ravel()
            counts = np.bincount(flat)
            nats = np.bincount(flat, weights=losses.cpu().numpy().ravel())
            self.label_tokens = _padded_sum(self.label_tokens, counts)
            self.label_nats = _padded_sum(self.label_nats, nats)

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n_tokens + other.n_tokens,
            self.n_bytes + other.n_bytes,
            self.nats + other.nats,
            self.text_nats + other.text_nats,
            _padded_sum(self.label_tokens, other.label_tokens),
            _padded_sum(self.label_nats, other.label_nats),
        )

    def row(self, n_loops: int) -> EvalRow:
        by_label = {
            str(i): (int(n), float(self.label_nats[i] / n))
            for i, n in enumerate(self.label_tokens)
            if i and n
        }
        return EvalRow(
            n_loops=n_loops,
            val_loss=self.nats / self.n_tokens,
            val_bpb=self.text_nats / (math.log(2) * self.n_bytes) if self.n_bytes else math.nan,
            n_tokens=self.n_tokens,
            by_label=by_label if len(self.label_tokens) else None,
        )


def _padded_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n = max(len(a), len(b))
    return np.pad(a, (0, n - len(a))) + np.pad(b, (0, n - len(b)))


def final_states(
    model: Parcae, ids: Tensor, rows: Sequence[int], wanted: Sequence[int], seed: int
) -> Iterator[tuple[int, Tensor]]:
    """(T, final states (B, T, D)) for each wanted number of loops, in rising order.

    Args:
        rows: whose initial states the sequences have, one each; a single one is for all.
    """
    if model.config.is_transformer:
        yield 1, model.transformer_states(ids)
        return
    state = model.seeded_state(rows, ids.shape[1], seed=seed).expand(len(ids), -1, -1)
    for t, (h, prepared) in zip(range(1, max(wanted) + 1), model.states(ids, state), strict=False):
        if t in wanted:
            yield t, model.read_out(h, prepared)
