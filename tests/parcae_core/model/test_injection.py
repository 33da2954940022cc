"""A_bar stays strictly inside (0, 1) whatever the parameters, and nothing turns into NaN."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parcae_core.model.injection import (
    ConcatInjection,
    DiagonalInjection,
    identity_or_orthogonal_,
    orthogonal_,
)
from parcae_core.presets import preset

ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)


def diagonal(injection="diagonal", d=32):
    module = DiagonalInjection(preset("nano").replace(injection=injection, d_model=d))
    module.reset_parameters(torch.Generator().manual_seed(0))
    return module


@example(a_log=3.4e38, dt_bias=-3.4e38, dtype=torch.bfloat16)
@example(a_log=-3.4e38, dt_bias=3.4e38, dtype=torch.float32)
@given(
    a_log=ANY, dt_bias=ANY, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
)
@settings(max_examples=300, deadline=None)
def test_a_bar_stays_inside_zero_and_one_and_gradients_stay_finite(a_log, dt_bias, dtype):
    module = diagonal().to(dtype)
    with torch.no_grad():
        for p, value in ((module.a_log, a_log), (module.dt_bias, dt_bias)):
            most = torch.finfo(dtype).max  # float32's largest is beyond bfloat16's
            p.fill_(max(-most, min(value, most)))
    a_bar = module.a_bar()
    assert bool((a_bar > 0).all())
    assert bool((a_bar < 1).all())
    assert 0 < module.spectral_radius() < 1
    h = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = module.carry(h, module.drive(h))
    out.float().sum().backward()
    for name, p in module.named_parameters():
        assert not torch.isnan(p.grad).any(), name


@pytest.mark.parametrize("injection", ["diagonal", "diagonal-zoh"])
def test_drive_and_carry_equal_the_discretised_equation(injection):
    module = diagonal(injection).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    h, e = torch.randn(2, 4, 3, 32, generator=generator, dtype=torch.float64)
    a, dt = -module.a_log.exp(), torch.log1p(module.dt_bias.exp())
    b_bar = dt if injection == "diagonal" else (torch.exp(dt * a) - 1) / a
    want = torch.exp(dt * a) * h + b_bar * (e @ module.B.T)
    assert torch.allclose(module.carry(h, module.drive(e)), want, atol=1e-12)


def test_exact_hold_of_a_constant_input_is_exact():
    """One ZOH step over dt equals two over dt/2, which Euler's does not."""
    h, e = torch.randn(2, 1, 1, 32, dtype=torch.float64)
    results = {}
    for injection in ("diagonal", "diagonal-zoh"):
        module = diagonal(injection).double()
        whole = module.carry(h, module.drive(e))
        dt = module.dt_and_rate()[0]
        with torch.no_grad():
            module.dt_bias.copy_(torch.log(torch.expm1(dt / 2)))
        halves = module.carry(module.carry(h, module.drive(e)), module.drive(e))
        results[injection] = (whole - halves).abs().max().item()
    assert results["diagonal-zoh"] < 1e-12 < 1e-3 < results["diagonal"]


def test_concat_radius_is_the_largest_singular_value_of_the_carry():
    module = ConcatInjection(preset("nano").replace(injection="concat"))
    module.reset_parameters(torch.Generator().manual_seed(0))
    carry = module.weight[:, :32].detach().numpy()
    assert module.spectral_radius() == pytest.approx(np.linalg.svd(carry)[1][0], rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12)])
def test_orthogonal_and_identity_initialisation(shape):
    weight = torch.empty(shape)
    orthogonal_(weight, 0.1, torch.Generator().manual_seed(0))
    small = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    assert torch.allclose(small, 0.01 * max(shape) * torch.eye(min(shape)), atol=1e-6)
    assert weight.square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-5)
    identity_or_orthogonal_(weight, torch.Generator().manual_seed(0))
    if shape[0] == shape[1]:
        assert torch.equal(weight, torch.eye(shape[0]))
    else:
        assert weight.square().sum(dim=int(shape[0] <= shape[1])).std() < 1e-5
