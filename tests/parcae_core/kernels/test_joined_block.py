"""Joined blocks against `Block.forward`: losses and every gradient."""

import numpy as np
import pytest
import torch

from parcae_core.depth import DepthDraw
from parcae_core.kernels.choice import ON_CPU, TORCH
from parcae_core.model.parcae import build_model
from parcae_core.presets import preset
from tests.parcae_core.conftest import randomise

DRAW = DepthDraw(no_grad=np.array([3, 0, 2, 0, 1]), grad=np.array([3, 1, 3, 2, 3]))


def loss_and_gradients(config, kernels, dtype):
    model = build_model(config, seed=0)
    randomise(model)
    model.to(dtype).use(kernels)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (5, config.context), generator=generator)
    state = torch.randn(5, config.context, config.state_width, generator=generator).to(dtype)
    depths = 1 if config.is_transformer else DRAW
    loss = model(ids, depths, targets=ids.roll(-1, 1), state=state).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_embeddings": False, "n_core": 2},
        {"injection": "none", "prelude_norm": False},
        {"n_kv_head": 1},
        {"injection": "concat", "residual_norm": True, "mlp": "swiglu"},
    ],
    ids=["demo", "every-block", "transformer", "gqa", "rdm"],
)
def test_equals_the_definition(changes, dtype):
    """At the shapes of the demonstration; what cannot be joined runs as it is defined.

    Equal to the last bit with MKL on an AMD EPYC; how a BLAS sums may differ with a product's size.
    """
    config = preset("nano").replace(context=64, vocab_size=7, **changes)
    (loss, grads), (joined_loss, joined_grads) = (
        loss_and_gradients(config, kernels, dtype) for kernels in (TORCH, ON_CPU)
    )
    slack = 64 * torch.finfo(dtype).eps
    assert abs(loss - joined_loss) <= slack * abs(loss)
    for name, grad in grads.items():
        assert (grad - joined_grads[name]).abs().max() <= slack * grad.abs().max(), name


def test_without_gradient_nothing_is_kept(tiny):
    model = build_model(tiny(value_embeddings=False), seed=0)
    randomise(model)
    block, x = model.core[0], torch.randn(2, 12, 16)
    assert block.joined
    with torch.no_grad():
        alone = block(x, model.core_rotary, None)
    assert alone.grad_fn is None
    assert torch.equal(alone, block(x, model.core_rotary, None))


def test_shorter_sequences_get_their_own_rotations(tiny):
    model = build_model(tiny(value_embeddings=False), seed=0)
    randomise(model)
    x = torch.randn(2, 12, 16)
    with torch.no_grad():
        whole = model.core[0](x, model.core_rotary, None)
        first = model.core[0](x[:, :5], model.core_rotary, None)  # attention is causal
    assert torch.allclose(whole[:, :5], first, rtol=1e-5, atol=1e-6)
