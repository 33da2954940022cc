"""The chunked head against its plain definition: losses, gradients, and what it never holds."""

import pytest
import torch
import torch.nn.functional as F

from parcae_core.kernels import dispatch
from parcae_core.kernels import linear_cross_entropy as cross_entropy
from parcae_core.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_ref,
    token_losses,
)


def make(n=37, d=8, v=23, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g).to(dtype).requires_grad_()
    w = torch.randn(v, d, generator=g).to(dtype).requires_grad_()
    return x, w, torch.randint(0, v, (n,), generator=g)


@pytest.mark.parametrize("chunk_logits", [1, 23, 100, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradients_equal_the_definition(monkeypatch, chunk_logits, dtype):
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", chunk_logits)
    x, w, targets = make(dtype=dtype)
    got = linear_cross_entropy(x, w, targets)
    grads = torch.autograd.grad(3 * got, (x, w))
    truth_x, truth_w = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    logits = truth_x @ truth_w.T
    truth = torch.nn.functional.cross_entropy(logits, targets)
    wanted = torch.autograd.grad(3 * truth, (truth_x, truth_w))
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert got.item() == pytest.approx(truth.item(), rel=tolerance)
    for g, want in zip(grads, wanted, strict=True):
        assert torch.allclose(g.double(), want, rtol=0, atol=tolerance)
    assert token_losses(x, w, targets).mean().item() == pytest.approx(truth.item(), rel=tolerance)


def test_no_more_than_a_chunk_of_logits_is_made(monkeypatch):
    seen = []
    real = cross_entropy._logits
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 100)
    monkeypatch.setattr(
        cross_entropy, "_logits", lambda x, w: seen.append(x.shape[0]) or real(x, w)
    )
    x, w, targets = make()
    linear_cross_entropy(x, w, targets)
    assert sum(seen) == 37
    assert max(seen) * w.shape[0] <= 100


def test_reference_is_the_mean_over_tokens():
    x, w, targets = make(dtype=torch.float32)
    assert linear_cross_entropy_ref(x, w, targets).item() == pytest.approx(
        linear_cross_entropy(x, w, targets).item(), rel=1e-6
    )


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)], ids=str
)
def test_ligers_is_as_accurate_as_the_definition(monkeypatch, dtype):
    pytest.importorskip("liger_kernel")
    if dispatch.INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, w, targets = (t.detach().to(device) for t in make(dtype=dtype))
    results = []
    for function, to in (
        (lambda *a: linear_cross_entropy(*a, impl="liger"), dtype),
        (linear_cross_entropy_ref, dtype),
        (lambda x, w, t: F.cross_entropy(x @ w.T, t), torch.float64),
    ):
        leaves = [t.to(to).requires_grad_() for t in (x, w)]
        loss = function(*leaves, targets)
        results.append([loss.detach(), *torch.autograd.grad(3 * loss, leaves)])
    slack = 1e-6 if dtype == torch.float32 else 1e-3  # as for our own kernels
    for got, ref, truth in zip(*results, strict=True):
        error, allowed = ((t.double() - truth).abs().max() / truth.abs().max() for t in (got, ref))
        assert error <= allowed + slack


def test_without_gradient_liger_makes_none(monkeypatch):
    pytest.importorskip("liger_kernel")
    if dispatch.INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, w, targets = (t.to(device) for t in make(dtype=torch.float32))
    with torch.no_grad():
        loss = linear_cross_entropy(x, w, targets, impl="liger")
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(linear_cross_entropy_ref(x, w, targets).item(), rel=1e-6)


def test_on_a_cpu_auto_is_torchs():
    x, w, targets = make()
    auto, plain = (linear_cross_entropy(x, w, targets, impl=i) for i in ("auto", "torch"))
    assert torch.equal(auto, plain)


def test_an_impl_that_cannot_run_says_which_can(monkeypatch):
    x, w, targets = make(dtype=torch.float32)
    with pytest.raises(ValueError, match="impl is 'triton'; it must be one of 'auto', 'torch'"):
        linear_cross_entropy(x, w, targets, impl="triton")
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(ValueError, match=r"impl='liger' .* on cpu; use impl='torch'"):
        linear_cross_entropy(x, w, targets, impl="liger")
    monkeypatch.setattr(cross_entropy, "unavailable", lambda device: None)
    monkeypatch.setattr(cross_entropy, "has_liger", lambda: False)
    with pytest.raises(ValueError, match=r"package liger-kernel .* use impl='torch'"):
        linear_cross_entropy(x, w, targets, impl="liger")
    monkeypatch.setattr(cross_entropy, "has_liger", lambda: True)
    with pytest.raises(ValueError, match="a tensor is float64; use impl='torch'"):
        linear_cross_entropy(x.double(), w, targets, impl="liger")
