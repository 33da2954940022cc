"""The CPU's RMS norm against torch's: values and every gradient, no worse than it in float32."""

import pytest
import torch

from parcae_core.kernels.relu_squared import relu_squared
from parcae_core.kernels.rms_norm import rms_norm, rms_norm_ref


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("eps", [1e-5, None])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 63, 100), (3, 5, 2, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchs_norm(dtype, shape, eps, weighted):
    g = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))
    if shape[-1] > 1:
        x[..., 0] *= 1e-4
    w = torch.randn(shape[-1], generator=g, dtype=torch.float64) if weighted else None
    step = torch.finfo(dtype).eps if eps is None else eps

    def run(function, to):
        leaves = [None if t is None else t.detach().clone().to(to).requires_grad_() for t in (x, w)]
        y = function(*leaves, step)
        y.backward(dy.to(to))
        return [y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]

    truth = run(rms_norm_ref, torch.float64)
    ref, got = run(rms_norm_ref, dtype), run(rms_norm, dtype)
    for name, a, b, t in zip(("y", "dx", "dw"), got, ref, truth, strict=False):
        scale = t.abs().max()
        if name == "dx":  # a difference of two terms of this size; with D = 1 nothing is left
            scale = dy.abs().max() / x.square().mean(-1).add(step).sqrt().min()
        error, ref_error = (((v.double() - t).abs().max() / scale).item() for v in (a, b))
        # as accurate as torch's own in this precision, plus the slack of other summation orders
        assert error <= ref_error + 8 * torch.finfo(dtype).eps, name


def test_default_eps_is_the_dtypes_own():
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 1e-4
    assert torch.allclose(rms_norm(x), rms_norm_ref(x, None, None), rtol=1e-5, atol=0)


@pytest.mark.parametrize("op", [rms_norm, relu_squared])
def test_rows_that_need_no_gradient_keep_nothing_and_are_the_same(op):
    x = torch.randn(4, 8, requires_grad=True)
    with torch.no_grad():
        alone = op(x)
    assert alone.grad_fn is None
    assert torch.equal(alone, op(x))


def test_low_precision_input_takes_torchs_path():
    x = torch.randn(4, 8).bfloat16()
    assert torch.equal(rms_norm(x), rms_norm_ref(x, None, None))
