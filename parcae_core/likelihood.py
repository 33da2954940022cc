"""Log-likelihood of continuations at many numbers of loops, in one pass over the loop.

As in `parcae_core.training.evaluate`, the state after T steps is the same whether more follow, so that
all numbers of loops cost as many core steps as the largest. B batch, T time, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from parcae_core.errors import UserError
from parcae_core.model.parcae import Parcae
from parcae_core.training.evaluate import final_states

Scored = tuple[float, bool]  # sum of log-probabilities in nats; whether each token is the likeliest


@torch.no_grad()
def log_likelihoods(
    model: Parcae,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    loops: Sequence[int],
    seed: int,
    batch_sequences: int = 16,
) -> list[dict[int, Scored]]:
    """Score each continuation after its context, at each number of loops.

    Args:
        pairs: (context, continuation) ids, the context not empty; one that does not fit is cut at its
            beginning.
        seed: of the initial states, which depend on the position alone.

    Raises:
        UserError: a continuation longer than the model's context.
    """
    longest = model.config.context
    rows: list[tuple[list[int], int]] = []  # tokens, how many of them at the end are scored
    for context, continuation in pairs:
        if len(continuation) > longest:
            raise UserError(
                f"a continuation of {len(continuation)} tokens is to be scored, and the model's context "
                f"is {longest}; leave this task out"
            )
        rows.append(((context + continuation)[-longest - 1 :], len(continuation)))
    scores: list[dict[int, Scored]] = [{} for _ in rows]
    # similar lengths together, so that little of a batch is padding
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    for start in range(0, len(order), batch_sequences):
        batch = order[start : start + batch_sequences]
        for t, scored in _scored(model, [rows[i] for i in batch], loops, seed):
            for i, score in zip(batch, scored, strict=True):
                scores[i][t] = score
    return scores


def _scored(
    model: Parcae, rows: list[tuple[list[int], int]], loops: Sequence[int], seed: int
) -> Iterator[tuple[int, list[Scored]]]:
    """(T, score of each row) for each number of loops."""
    device = model.embedding.weight.device
    width = max(1, len(rows[0][0]) - 1)  # the first is the longest
    # what stands after a row's end is attended to by nothing that is scored
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    wanted, targets = torch.zeros(len(rows), width, dtype=torch.bool), []
    for i, (tokens, n) in enumerate(rows):
        end = len(tokens) - 1
        ids[i, :end] = torch.tensor(tokens[:-1])
        wanted[i, end - n : end] = True
        targets += tokens[len(tokens) - n :]
    target = torch.tensor(targets, device=device)
    counts = [n for _, n in rows]
    for t, final in final_states(model, ids.to(device), [0], loops, seed):
        log_p = F.log_softmax(F.linear(final[wanted.to(device)], model.head_weight).float(), -1)
        nats = log_p.gather(1, target[:, None])[:, 0].double().split(counts)
        likeliest = (log_p.argmax(1) == target).split(counts)
        yield t, [(n.sum().item(), bool(g.all())) for n, g in zip(nats, likeliest, strict=True)]
