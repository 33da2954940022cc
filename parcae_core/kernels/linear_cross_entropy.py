"""Cross-entropy of a linear head without ever holding all logits.

loss = mean over tokens of logsumexp(x W^T) - (x W^T)[target], natural log.
The head's products dominate memory (tokens x vocabulary, float32): they are made in chunks of
tokens, and the gradients are formed in the same pass, so that nothing is recomputed.
`linear_cross_entropy_ref` is the definition; tests compare losses and gradients.
On CUDA liger-kernel's does the same with the softmax and its gradient in one kernel.
"""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from parcae_core.accounting.memory import CHUNK_LOGITS
from parcae_core.kernels.dispatch import DTYPES, unavailable

CrossEntropy = Literal["torch", "liger"]


def linear_cross_entropy_ref(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Plain definition: mean nats per token of x (N, D), weight (V, D), targets (N,)."""
    return F.cross_entropy((x @ weight.T).float(), targets)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    impl: Literal["auto"] | CrossEntropy = "auto",
) -> Tensor:
    """Mean nats per token, float32 scalar (float64 for float64 input), with gradients.

    Args:
        x: final states, (..., D).
        weight: head, (V, D).
        targets: token ids, (...), int64, none negative.
        impl: "torch" in chunks, "liger" by the package liger-kernel, or "auto": liger on CUDA where
            it is installed, else torch.

    Raises:
        ValueError: for an unknown `impl`, or impl="liger" where it cannot run.
    """
    if not torch.is_grad_enabled():  # forming gradients would triple the work
        x, weight = x.detach(), weight.detach()
    flat, ids = x.flatten(0, -2), targets.flatten()
    if _use_liger(flat, weight, impl):
        # imported here: it brings torch's compiler along, which takes seconds
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(flat, weight, ids)
    return _LinearCrossEntropy.apply(flat, weight, ids)


def has_liger() -> bool:
    """Whether the package liger-kernel is installed."""
    return importlib.util.find_spec("liger_kernel") is not None


def _use_liger(x: Tensor, weight: Tensor, impl: str) -> bool:
    if impl not in ("auto", *get_args(CrossEntropy)):
        raise ValueError(
            f"linear_cross_entropy: impl is {impl!r}; it must be one of 'auto', 'torch', 'liger'"
        )
    if impl == "torch" or (impl == "auto" and x.device.type != "cuda"):
        return False
    problem = unavailable(x.device)
    if problem is None and not has_liger():
        problem = "needs the package liger-kernel (pip install 'parcae-scaling[kernels]')"
    wrong = [t.dtype for t in (x, weight) if t.dtype not in DTYPES]
    if problem is None and wrong:
        problem = f"takes float32, float16 and bfloat16, and a tensor is {str(wrong[0])[6:]}"
    if impl == "liger" and problem is not None:
        raise ValueError(f"linear_cross_entropy: impl='liger' {problem}; use impl='torch'")
    return problem is None


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
    limit = CHUNK_LOGITS.get(weight.device.type, CHUNK_LOGITS["cuda"])
    size = max(1, limit // weight.shape[0])
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
