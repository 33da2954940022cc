"""Cross-entropy of a linear head without ever holding all logits.

loss = mean over tokens of logsumexp(x W^T) - (x W^T)[target], natural log.
The head's products dominate memory (tokens x vocabulary, float32): they are made in chunks of
tokens, and the gradients are formed in the same pass, so that nothing is recomputed.
`linear_cross_entropy_ref` is the definition; tests compare losses and gradients.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# float32 logits alive at a time: 64 MiB fill a GPU; a CPU's products want about 16 MiB
_CHUNK_LOGITS = {"cuda": 1 << 24, "cpu": 1 << 22}


def linear_cross_entropy_ref(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Plain definition: mean nats per token of x (N, D), weight (V, D), targets (N,)."""
    return F.cross_entropy((x @ weight.T).float(), targets)


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token, float32 scalar (float64 for float64 input), with gradients.

    Args:
        x: final states, (..., D).
        weight: head, (V, D).
        targets: token ids, (...), int64.
    """
    if not torch.is_grad_enabled():  # forming gradients would triple the work
        x, weight = x.detach(), weight.detach()
    return _LinearCrossEntropy.apply(x.flatten(0, -2), weight, targets.flatten())


@torch.no_grad()
def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Nats of each token, shape of `targets`, without gradients."""
    flat, ids = x.flatten(0, -2), targets.flatten()
    losses = [
        F.cross_entropy(_logits(flat[c], weight), ids[c], reduction="none")
        for c in _chunks(flat.shape[0], weight)
    ]
    return torch.cat(losses).view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        n = x.shape[0]
        needs_grad = any(ctx.needs_input_grad[:2])
        grad_x = torch.empty_like(x) if needs_grad else None
        grad_w = torch.zeros_like(weight) if needs_grad else None
        total = x.new_zeros((), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        for c in _chunks(n, weight):
            log_p = torch.log_softmax(_logits(x[c], weight), dim=-1)
            picked = targets[c].unsqueeze(-1)
            total -= log_p.gather(-1, picked).sum()
            if needs_grad:
                d_logits = log_p.exp_()  # (chunk, V): softmax - onehot, over n
                d_logits.scatter_add_(-1, picked, d_logits.new_full(picked.shape, -1.0))
                d_logits = d_logits.div_(n).to(x.dtype)
                grad_x[c] = d_logits @ weight
                grad_w += d_logits.T @ x[c]
        if needs_grad:
            ctx.save_for_backward(grad_x, grad_w)
        return total / n

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        grad_x, grad_w = ctx.saved_tensors
        return grad_x * grad_out, grad_w * grad_out, None


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    logits = x @ weight.T
    return logits if logits.dtype == torch.float64 else logits.float()


def _chunks(n: int, weight: Tensor) -> list[slice]:
    limit = _CHUNK_LOGITS.get(weight.device.type, _CHUNK_LOGITS["cuda"])
    size = max(1, limit // weight.shape[0])
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
