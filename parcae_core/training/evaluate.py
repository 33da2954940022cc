"""Validation loss at many numbers of loops, in one pass over the loop.

The state after T steps is the same whether T or more steps follow, so the test-time curve
T = 1..K needs K core steps and one coda per requested T, not 1 + 2 + ... + K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
    group, sums = group or Distributed(), dict.fromkeys(wanted, 0.0)
    for start in range(group.rank * batch_sequences, n_sequences, group.n * batch_sequences):
        n = min(batch_sequences, n_sequences - start)
        stored = np.asarray(reader.rows(start, n), dtype=np.int64)
        labels = reader.labels(stored)
        rows = torch.from_numpy(stored).to(device)
        ids, targets = rows[:, :-1], rows[:, 1:]
        in_text = token_bytes[targets]
        for t, final in final_states(model, ids, range(start, start + n), wanted, seed):
            losses = token_losses(final, model.head_weight, targets).double()
            sums[t] = sums[t] + _sums(losses, in_text, labels)
    shares = group.gather(sums)
    return tuple(_row(t, sum(share[t] for share in shares)) for t in wanted)


def _sums(losses: Tensor, in_text: Tensor, labels: np.ndarray | None) -> np.ndarray:
    """Of the tokens of a batch, (2, 3 + T); sums of batches and of processes are these as well.

    Row 0 counts tokens, bytes, and tokens by label (0 to T); row 1 has the nats of all tokens, of those
    that stand for bytes, and by label.

    Args:
        losses: nats of each token, (B, T).
        in_text: bytes of each token, (B, T).
        labels: (B, T), where there are labels; 0 is not one.
    """
    sums = np.zeros((2, 3 + losses.shape[1]))
    sums[0, :2] = losses.numel(), int(in_text.sum())
    sums[1, :2] = losses.sum().item(), losses[in_text > 0].sum().item()
    if labels is not None:
        flat, n = labels.ravel(), sums.shape[1] - 2
        sums[0, 2:] = np.bincount(flat, minlength=n)
        sums[1, 2:] = np.bincount(flat, weights=losses.cpu().numpy().ravel(), minlength=n)
    return sums


def _row(n_loops: int, sums: np.ndarray) -> EvalRow:
    (n_tokens, n_bytes, unlabelled, *counts), (nats, text_nats, _, *label_nats) = sums.tolist()
    labelled = enumerate(zip(counts, label_nats, strict=True), 1)
    by_label = {str(i): (int(n), nats / n) for i, (n, nats) in labelled if n}
    return EvalRow(
        n_loops=n_loops,
        val_loss=nats / n_tokens,
        val_bpb=text_nats / (math.log(2) * n_bytes) if n_bytes else math.nan,
        n_tokens=int(n_tokens),
        by_label=by_label if unlabelled or by_label else None,
    )


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
