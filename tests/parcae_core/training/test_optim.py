"""Muon and AdamW against their equations written out one matrix at a time, in float64."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from parcae_core.model.parcae import build_model
from parcae_core.presets import preset
from parcae_core.training import optim
from parcae_core.training.optim import Optimizer, assign_groups, polar_factor
from parcae_core.trial import OptimConfig

BLOCK_MUON = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")
BLOCK_ADAMW = ("norm_attn", "norm_mlp")


def test_every_parameter_of_the_140m_model_is_in_the_group_the_paper_gives_it():
    model = build_model(preset("140m"), seed=0, device="meta")
    layers = [f"{part}.{i}" for part in ("prelude", "core", "coda") for i in range(2)]
    expected = {f"{layer}.{m}.weight": "muon" for layer in layers for m in BLOCK_MUON}
    expected |= {f"{layer}.{n}.weight": "adamw" for layer in layers for n in BLOCK_ADAMW}
    # value embeddings: alternating layers of six, the last one always
    expected |= {f"value_embeddings.{i}.weight": "adamw" for i in (1, 3, 5)}
    expected |= {
        f"{part}.1.attn.value_gate.weight": "adamw" for part in ("prelude", "core", "coda")
    }
    expected |= dict.fromkeys(
        ("embedding.weight", "norm_prelude.weight", "norm_final.weight", "readout.weight"), "adamw"
    )
    expected |= dict.fromkeys(("injection.a_log", "injection.dt_bias", "injection.B"), "adamw")
    groups = assign_groups(model.named_parameters())
    assert groups == expected
    sizes = Counter()
    for name, p in model.named_parameters():
        sizes[groups[name]] += p.numel()
    # six layers of 4 d^2 + 8 d^2; the rest of the published total
    assert sizes["muon"] == 6 * 12 * 768**2
    assert sizes["muon"] + sizes["adamw"] == 144_323_136


@pytest.mark.parametrize(
    "changes",
    [
        {"injection": "concat"},
        {"injection": "add"},
        {"injection": "none", "prelude_norm": False},
        {"mlp": "swiglu", "residual_norm": True},
        {"tie_embeddings": False},
    ],
)
def test_every_variant_of_the_model_is_assigned(tiny, changes):
    model = build_model(tiny(**changes), seed=0)
    groups = assign_groups(model.named_parameters())
    assert groups.keys() == dict(model.named_parameters()).keys()
    matrices = {n for n in groups if ".mlp." in n or ".attn." in n} - {
        n for n in groups if "value_gate" in n
    }
    assert {n for n, g in groups.items() if g == "muon"} == matrices


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match=r"core\.0\.attn\.bias \(3,\) belongs to no optimiser"):
        assign_groups([("core.0.attn.bias", torch.zeros(3))])


def test_muon_refuses_what_is_not_a_matrix():
    with pytest.raises(ValueError, match=r"core\.0\.attn\.q\.weight \(3,\) is not a matrix"):
        assign_groups([("core.0.attn.q.weight", torch.zeros(3))])


def minimax_quintic(low, high):
    """Odd quintic with the least largest error to 1 on [low, high], by exchange (Remez)."""
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(100):
        x = np.array([low, *inner, high])
        system = np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1)
        a, b, c, _error = np.linalg.solve(system, np.ones(4))
        inner = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a])))
    return np.array([a, b, c])


def test_the_polar_coefficients_are_the_minimax_ones():
    # below this share of the upper end the paper narrows the interval, for a finite slope at 0
    cushion = 0.02407327424182761
    low, high = 1e-3, 1.0
    for published in optim._POLAR:
        found = minimax_quintic(max(low, cushion * high), high)

        def value(x, poly=found):
            return poly[0] * x + poly[1] * x**3 + poly[2] * x**5

        found = found * 2 / (value(low) + value(high))  # centre the error around 1
        assert found == pytest.approx(published, rel=1e-9)
        low = found[0] * low + found[1] * low**3 + found[2] * low**5
        high = 2 - low


@pytest.mark.parametrize("shape", [(2, 12, 12), (2, 12, 30), (2, 30, 12), (1, 1, 5), (1, 5, 1)])
def test_the_polar_factor_keeps_the_singular_vectors_and_flattens_the_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    reached = u.mT @ polar_factor(x) @ vt.mT
    values = torch.diagonal(reached, dim1=-2, dim2=-1)
    assert (s.amin(-1) > 1e-3 * torch.linalg.matrix_norm(x)).all()
    assert (values - 1).abs().max() < 0.2
    off = reached - torch.diag_embed(values)
    assert off.abs().max() < 1e-9


def test_the_polar_factor_of_zero_is_zero():
    assert polar_factor(torch.zeros(1, 3, 4)).abs().max() == 0


def muon_by_hand(w, grads, config, n_steps):
    """One matrix, the equations of the module's docstring, its own polar iteration."""
    rows, cols = w.shape
    axis = 1 if rows >= cols else 0
    m, v = np.zeros_like(w), None
    for step, g in enumerate(grads):
        beta = config.muon_momentum
        m = beta * m + (1 - beta) * g
        x = (1 - beta) * g + beta * m
        x = x / (1.02 * np.linalg.norm(x) + 1e-7)
        for i, (a, b, c) in enumerate(optim._POLAR):
            y = x / (1.02 if i < 4 else 1.0)
            gram = y @ y.T
            x = a * y + (b * gram + c * gram @ gram) @ y
        mean_square = (x**2).mean(axis=axis, keepdims=True)
        v = 0.05 * mean_square + 0.95 * (0.0 if v is None else v)
        u = x / np.sqrt(v)
        u = u * np.linalg.norm(x) / np.linalg.norm(u)
        scale = min(1.0, (n_steps - step) / (0.5 * n_steps))
        eta = config.muon_lr * scale * math.sqrt(max(1.0, rows / cols))
        decay = config.muon_weight_decay * (1 - step / n_steps)
        w = w - eta * (u + decay * w * (u * w >= 0))
    return w


def adamw_by_hand(w, grads, config, n_steps):
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, g in enumerate(grads):
        b1, b2 = config.adamw_beta1, config.adamw_beta2
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
        scale = min(1.0, (n_steps - step) / (0.5 * n_steps))
        w = w - config.adamw_lr * scale * m_hat / (np.sqrt(v_hat) + config.adamw_eps)
    return w


@pytest.fixture
def double_model(tiny):
    return build_model(tiny(), seed=0).double()


def random_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model.named_parameters()
    }


def make_updates(model, optimizer, steps):
    for step in steps:
        for n, grad in random_gradients(model, step).items():
            model.get_parameter(n).grad = grad
        optimizer.update(step)


def test_five_updates_equal_the_equations_for_every_parameter(double_model):
    config = OptimConfig(muon_lr=0.02, adamw_lr=0.01)
    groups = assign_groups(double_model.named_parameters())
    start = {n: p.detach().clone() for n, p in double_model.named_parameters()}
    make_updates(double_model, Optimizer(double_model, config, n_steps=6), range(5))
    for name, p in double_model.named_parameters():
        grads = [random_gradients(double_model, s)[name].numpy() for s in range(5)]
        by_hand = muon_by_hand if groups[name] == "muon" else adamw_by_hand
        expected = by_hand(start[name].numpy(), grads, config, 6)
        # relative to the size of the change; float64 throughout
        assert np.abs(p.detach().numpy() - expected).max() < 1e-9, name


def test_a_restored_optimiser_goes_on_identically(tiny):
    models = [build_model(tiny(), seed=0) for _ in range(2)]
    whole = Optimizer(models[0], OptimConfig(), n_steps=8)
    make_updates(models[0], whole, range(5))
    saved = {n: t.clone() for n, t in whole.state_tensors().items()}
    models[1].load_state_dict(models[0].state_dict())
    restored = Optimizer(models[1], OptimConfig(), n_steps=8)
    restored.load_state_tensors(saved, steps_made=5)
    make_updates(models[0], whole, range(5, 8))
    make_updates(models[1], restored, range(5, 8))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_another_model_is_refused(tiny):
    saved = Optimizer(build_model(tiny(), seed=0), OptimConfig(), n_steps=1).state_tensors()
    other = Optimizer(build_model(tiny(n_core=1), seed=0), OptimConfig(), n_steps=1)
    with pytest.raises(ValueError, match=r"tensors differ .*checkpoint is of another model"):
        other.load_state_tensors(saved, steps_made=0)


def test_a_gradient_of_zero_leaves_finite_weights(tiny):
    model = build_model(tiny(), seed=0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    Optimizer(model, OptimConfig(), n_steps=4).update(0)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_missing_gradient_is_our_bug(tiny):
    optimizer = Optimizer(build_model(tiny(), seed=0), OptimConfig(), n_steps=1)
    with pytest.raises(AssertionError, match="no gradient for"):
        optimizer.update(0)


def test_stacks_under_the_memory_bound_change_nothing(tiny, monkeypatch):
    results = []
    for bound in (1 << 26, 300):
        monkeypatch.setattr(optim, "_STACK_ELEMENTS", bound)
        model = build_model(tiny(), seed=0).double()
        optimizer = Optimizer(model, OptimConfig(), n_steps=3)
        make_updates(model, optimizer, range(3))
        results.append([p.detach().clone() for p in model.parameters()])
        n_stacks = len(optimizer._stacks)
    assert n_stacks > 3
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "field",
    ["muon_lr", "muon_momentum", "muon_weight_decay", "adamw_lr", "adamw_beta1", "adamw_beta2",
     "adamw_eps", "warmup_steps", "cooldown_share", "weight_decay_falls"],
)  # fmt: skip
def test_every_field_changes_the_update(tiny, field):
    changed = {
        "warmup_steps": 7,
        "cooldown_share": 0.9,
        "adamw_eps": 0.1,
        "weight_decay_falls": "cooldown",
    }
    value = changed[field] if field in changed else 0.9 * getattr(OptimConfig(), field)
    results = []
    for config in (OptimConfig(), OptimConfig(**{field: value})):
        model = build_model(tiny(), seed=0)
        make_updates(model, Optimizer(model, config, n_steps=4), range(4))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.equal(*results)
