"""The fused relu^2 against its definition: values, gradients, and what it keeps."""

import pytest
import torch

from parcae_core.kernels.relu_squared import relu_squared, relu_squared_ref
from tests.support.kernel_accuracy import DTYPES, SHAPES, check, normal, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equals_the_definition(dtype):
    x = torch.randn(3, 7, 33, generator=torch.Generator().manual_seed(0)).to(dtype)
    dy = torch.randn(3, 7, 33, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for function in (relu_squared, relu_squared_ref):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.backward(dy)
        results.append((y.detach(), leaf.grad))
    truth = x.double().clamp(min=0) ** 2 / 2
    slope = x.double().clamp(min=0) * dy.double()
    for (got, ref), want in zip(zip(*results, strict=True), (truth, slope), strict=True):
        # no worse than the same-precision definition, plus an ulp of the largest value
        slack = torch.finfo(dtype).eps * want.abs().max()
        error, ref_error = ((t.double() - want).abs().max() for t in (got, ref))
        assert error <= ref_error + slack


def test_keeps_one_tensor_for_the_backward():
    kept = []
    x = torch.randn(5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        relu_squared(x)
    assert len(kept) == 1


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_output_and_gradient(shape, dtype, device, poison_empty):
    check(
        lambda x: relu_squared(x, impl="triton"),
        relu_squared_ref,
        [normal(*shape, seed=2)],
        "y dx",
        dtype,
        device,
    )


def test_the_kernel_keeps_nothing_but_its_output(device):
    kept = []
    x = torch.randn(5, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = relu_squared(x, impl="triton")
    assert [t.data_ptr() for t in kept] == [y.data_ptr()]


def test_the_kernel_passes_a_nan_on(device):
    x = torch.tensor([1.0, float("nan"), -1.0], device=device)
    y, dx = run(lambda t: relu_squared(t, impl="triton"), [x])
    assert torch.isnan(y).tolist() == torch.isnan(dx).tolist() == [False, True, False]
