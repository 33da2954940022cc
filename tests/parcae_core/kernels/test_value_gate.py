"""Gated value embeddings in one pass against the definition."""

import pytest
import torch

from parcae_core.kernels.value_gate import value_gate, value_gate_ref
from tests.support.kernel_accuracy import DTYPES, check, normal, run


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 63, 3, 33), (3, 32, 2, 128)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients(shape, dtype, device, poison_empty):
    b, t, g, k = shape
    check(
        lambda *a: value_gate(*a, impl="triton"),
        value_gate_ref,
        [normal(*shape, seed=0), normal(b, t, g, seed=1), normal(b, t, g * k, seed=2)],
        "y dv dgate dembedding",
        dtype,
        device,
    )


def test_values_inside_wider_rows(device):
    wide = normal(2, 5, 24, seed=0).to(device, torch.float32)
    gate, e = normal(2, 5, 2, seed=1).to(wide), normal(2, 5, 8, seed=2).to(wide)
    found = [
        run(
            lambda x, i=impl: value_gate(x[..., 16:].unflatten(-1, (2, 4)), gate, e, impl=i), [wide]
        )
        for impl in ("triton", "torch")
    ]
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


class _RoundedOnce(torch.autograd.Function):
    """The best a kernel can do: exact values and gradients, each rounded once."""

    @staticmethod
    def forward(ctx, *inputs):
        ctx.save_for_backward(*inputs)
        return value_gate_ref(*(t.double() for t in inputs)).to(inputs[0].dtype)

    @staticmethod
    def backward(ctx, dy):
        leaves = [t.detach().double().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            y = value_gate_ref(*leaves)
        found = torch.autograd.grad(y, leaves, dy.double())
        return tuple(g.to(t.dtype) for g, t in zip(found, ctx.saved_tensors, strict=True))


def test_what_rounds_once_is_accurate_in_bfloat16():
    """The truth must meet the rounded gradients too: against others it would be off by 5.6e-3."""
    check(
        _RoundedOnce.apply,
        value_gate_ref,
        [normal(1, 1, 1, 1, seed=0), normal(1, 1, 1, seed=1), normal(1, 1, 1, seed=2)],
        "y dv dgate dembedding",
        torch.bfloat16,
        "cpu",
    )


def test_a_wide_table_meets_narrow_values(device):
    """As under autocast: values and gate in half precision, the table in float32."""
    v, gate = normal(2, 3, 2, 4, seed=0).half(), normal(2, 3, 2, seed=1).half()
    inputs = [t.to(device) for t in (v, gate, normal(2, 3, 8, seed=2).float())]
    got = run(lambda *a: value_gate(*a, impl="triton"), inputs)
    for a, b in zip(got, run(value_gate_ref, inputs), strict=True):
        assert a.dtype == b.dtype
        # the definition rounds the gate, the product and the sum to halves, 5e-4 each
        assert torch.allclose(a.float(), b.float(), rtol=2e-3, atol=2e-3)


def test_extreme_logits_stay_finite(device):
    v = torch.ones(1, 2, 1, 2, device=device)
    gate = torch.tensor([-200.0, 200.0], device=device).view(1, 2, 1)
    y, _, dgate, de = run(
        lambda *a: value_gate(*a, impl="triton"), [v, gate, torch.ones(1, 2, 2, device=device)]
    )
    assert y.flatten().tolist() == [1, 1, 3, 3]
    assert dgate.flatten().tolist() == [0, 0]
    assert torch.isfinite(de).all()


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"gate \(1, 2, 4\) \(B, T, G\)"):
        value_gate(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4), torch.zeros(1, 2, 12))
