"""The MLP with relu^2 in its products against the definition: values, gradients, what it keeps."""

import pytest
import torch

from parcae_core.kernels.relu_squared_mlp import relu_squared_mlp, relu_squared_mlp_ref
from tests.support.kernel_accuracy import check, normal, run

# rows, D, F: tiles of 128 x 256 and steps of 64, over and under their edges
SHAPES = [(1, 1, 1), (63, 30, 100), (300, 64, 130), (129, 128, 260)]
# not float16: see the file
DTYPES = [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def inputs(rows, d, f):
    return [normal(rows, d, seed=0), normal(f, d, seed=1) / d**0.5, normal(d, f, seed=2) / f**0.5]


def kernel(u, up, down):
    return relu_squared_mlp(u, up, down, impl="triton")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients(shape, dtype, device, poison_empty):
    if dtype == torch.float32 and device == "cuda":
        pytest.skip("float32 products on a GPU are torch's, which is what it is held to")
    check(kernel, relu_squared_mlp_ref, inputs(*shape), "z du dup ddown", dtype, device)


def test_the_backward_keeps_the_hidden_state_once(device):
    kept = []
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    leaves = [t.to(device, dtype).requires_grad_() for t in inputs(5, 4, 7)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        kernel(*leaves)
    assert sorted(tuple(t.shape) for t in kept) == [(4, 7), (5, 4), (5, 7), (7, 4)]


def test_a_nan_is_passed_on(device):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    u, up, down = (t.to(device, dtype) for t in inputs(3, 4, 6))
    u[1, 0] = torch.nan
    z, du, _, _ = run(kernel, [u, up, down])
    for rows in (z, du):
        assert torch.isnan(rows).all(-1).tolist() == [False, True, False]


def test_float16_stays_apart_and_keeps_small_gradients(device):
    """0.5 x^2 of x = 1e-4 is no float16, so relu(x) cannot come from it."""
    one = torch.ones(1, 1, device=device, dtype=torch.float16)
    _, du, *_ = run(kernel, [one * 1e-4, one, one])
    dz = normal(1, 1, seed=100).item()  # what `run` hands in
    assert du.item() == pytest.approx(1e-4 * dz, rel=1e-2)


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"up \(5, 4\) \(F, D\)"):
        relu_squared_mlp(torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(3, 5))
