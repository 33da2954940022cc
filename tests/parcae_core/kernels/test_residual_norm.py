"""Residual sum and norm in one pass against the definition, also with a narrower branch."""

import pytest
import torch

from parcae_core.kernels.residual_norm import residual_norm, residual_norm_ref
from tests.support.kernel_accuracy import DTYPES, SHAPES, check, normal, run

EPS = 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients(shape, dtype, device, poison_empty):
    inputs = [normal(*shape, seed=0), normal(*shape, seed=1), 1 + normal(shape[-1], seed=2) / 3]
    check(
        lambda *t: residual_norm(*t, EPS, impl="triton"),
        lambda *t: residual_norm_ref(*t, EPS),
        inputs,
        "sum normed dx ddelta dweight",
        dtype,
        device,
    )


def test_a_narrower_branch_keeps_the_streams_precision(device):
    """As under autocast: float32 stream and weight, half-precision branch and normed output."""
    x, delta = normal(2, 9, 20, seed=0).float().to(device), normal(2, 9, 20, seed=1).half()
    inputs = [x, delta.to(device), torch.linspace(0.5, 1.5, 20, device=device)]

    def definition(*t):
        total, normed = residual_norm_ref(*t, EPS)
        return total, normed.half()

    got = run(lambda *t: residual_norm(*t, EPS, dtype=torch.float16, impl="triton"), inputs)
    want = run(definition, inputs)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        # one rounding of a half is 5e-4; both round the same float32 numbers but for the last bits
        assert torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5)


def test_on_a_cpu_torch_runs_unless_told():
    x, delta, w = torch.randn(3, 8), torch.randn(3, 8), torch.ones(8)
    a, b = residual_norm(x, delta, w, EPS), residual_norm(x, delta, w, EPS, impl="torch")
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"x \(2, 4\) and delta \(2, 3\) must have one shape"):
        residual_norm(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(4), EPS)
