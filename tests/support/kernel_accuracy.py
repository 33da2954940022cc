"""How a kernel is judged: against float64, next to the plain definition in the same precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

# Of the largest true value; a kernel adds up in another order than torch, and rounds once where
# torch rounds after every operation.
SLACK = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-3}
# Triton's interpreter cuts float32 off to bfloat16 where a GPU rounds; on a GPU all are a card's tests
DTYPES = [
    pytest.param(dtype, marks=[pytest.mark.gpu] if only or torch.cuda.is_available() else [])
    for dtype, only in ((torch.float32, False), (torch.float16, False), (torch.bfloat16, True))
]
SHAPES = [(1, 1, 1), (2, 63, 100), (3, 128, 130)]

Op = Callable[..., Tensor | tuple[Tensor, ...]]


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def run(op: Op, inputs: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Outputs and the gradient to every input, for the same random gradients of the outputs.

    Args:
        dtype: those are rounded to it first, so that a truth in float64 meets the same numbers.
    """
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    outputs = op(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    coming = [normal(*y.shape, seed=100 + i).to(dtype).to(y) for i, y in enumerate(outputs)]
    torch.autograd.backward(outputs, coming)
    return [*(y.detach() for y in outputs), *(leaf.grad for leaf in leaves)]


def check(
    kernel: Op, reference: Op, inputs: Sequence[Tensor], names: str, dtype: torch.dtype, device: str
) -> None:
    """A kernel errs no more than the definition does in the same precision, plus SLACK; twice.

    Args:
        inputs: float64 tensors, rounded to `dtype` before anything sees them.
        names: of the outputs, then of the inputs.
    """
    rounded = [t.to(device, dtype) for t in inputs]
    truth = run(reference, [t.double() for t in rounded], dtype)
    same = run(reference, rounded, dtype)
    got, again = run(kernel, rounded, dtype), run(kernel, rounded, dtype)
    for name, *values in zip(names.split(), got, again, same, truth, strict=True):
        assert_as_accurate(name, *values, dtype)


def assert_as_accurate(
    name: str, got: Tensor, again: Tensor, same: Tensor, truth: Tensor, dtype: torch.dtype
) -> None:
    assert got.dtype == same.dtype, name
    assert got.shape == truth.shape, name
    assert torch.isfinite(got).all(), f"{name}: an element was not written"
    assert torch.equal(got, again), f"{name}: two runs differ"
    scale = truth.abs().max().clamp_min(1e-30)
    error, allowed = (((t.double() - truth).abs().max() / scale).item() for t in (got, same))
    assert error <= allowed + SLACK[dtype], f"{name}: {error:.2e}, the definition {allowed:.2e}"
