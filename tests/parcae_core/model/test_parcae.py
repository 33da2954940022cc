"""The model against its equations, written out independently; what it refuses; its initialisation."""

import math

import numpy as np
import pytest
import torch

from parcae_core.depth import DepthDraw, PoissonDepth
from parcae_core.model.parcae import build_model
from tests.parcae_core.conftest import randomise
from tests.support.plain_forward import plain_logits

VARIANTS = {
    "diagonal": {},
    "zoh": {"injection": "diagonal-zoh"},
    "add": {"injection": "add"},
    "concat": {"injection": "concat"},
    "rdm": {
        "injection": "concat",
        "residual_norm": True,
        "prelude_norm": False,
        "readout": False,
        "mlp": "swiglu",
        "value_embeddings": False,
    },
    "no-prelude-norm": {"prelude_norm": False},
    "swiglu": {"mlp": "swiglu"},
    "wider-state": {"d_state": 24, "core_n_head": 3},
    "narrower-state-concat": {"d_state": 8, "injection": "concat", "core_d_ff": 20},
    "gqa": {"n_head": 4, "n_kv_head": 2},
    "untied": {"tie_embeddings": False},
    "no-qk-norm": {"qk_norm": False},
    "transformer": {"injection": "none", "prelude_norm": False},
}


def cases(config, batch=5, seq_len=9):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (batch, seq_len), generator=generator)
    state = torch.randn(batch, seq_len, config.state_width, generator=generator).double()
    draw = DepthDraw(no_grad=np.array([0, 3, 1, 0, 2]), grad=np.array([1, 2, 2, 2, 2]))
    if config.is_transformer:
        draw = DepthDraw(no_grad=np.zeros(5, int), grad=np.ones(5, int))
    return ids, state, draw


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_every_gradient_equal_the_equations(tiny, variant):
    config = tiny(**VARIANTS[variant])
    model = build_model(config, seed=0).double()
    randomise(model)
    ids, state, draw = cases(config)
    got = model(
        ids,
        1 if config.is_transformer else draw,
        state=None if config.is_transformer else state,
    ).logits
    (got.sin() * torch.linspace(-1, 1, got.numel()).view_as(got)).sum().backward()
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    want = torch.stack(
        [
            plain_logits(config, weights, ids[i], int(draw.no_grad[i]), int(draw.grad[i]), state[i])
            for i in range(ids.shape[0])
        ]
    )
    (want.sin() * torch.linspace(-1, 1, want.numel()).view_as(want)).sum().backward()
    assert torch.allclose(got, want, rtol=0, atol=1e-9)
    for name, p in model.named_parameters():
        scale = weights[name].grad.abs().max().clamp_min(1.0)
        # float64 throughout; 1e-9 relative to the largest entry leaves room for other summation orders
        assert (p.grad - weights[name].grad).abs().max() <= 1e-9 * scale, name
        assert p.grad.abs().max() > 0, f"{name} carries no gradient"


def test_loss_is_the_mean_cross_entropy_of_the_logits(tiny):
    config = tiny()
    model = build_model(config, seed=0).double()
    randomise(model)
    ids, state, draw = cases(config)
    targets = ids.roll(-1, 1)
    loss = model(ids, draw, state=state, targets=targets).loss
    logits = model(ids, draw, state=state).logits
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(want.item(), abs=1e-12)


def test_a_sequence_does_not_see_its_neighbours_or_its_future(tiny):
    config = tiny()
    model = build_model(config, seed=0).double()
    randomise(model)
    ids, state, draw = cases(config)
    whole = model(ids, draw, state=state).logits
    alone = DepthDraw(no_grad=draw.no_grad[1:2], grad=draw.grad[1:2])
    assert torch.allclose(model(ids[1:2], alone, state=state[1:2]).logits, whole[1:2], atol=1e-12)
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % config.vocab_size
    later = model(changed, draw, state=state).logits
    assert torch.allclose(later[:, :6], whole[:, :6], atol=1e-12)
    assert not torch.allclose(later[:, 6:], whole[:, 6:], atol=1e-3)


def test_initialisation_is_the_papers(tiny):
    config = tiny(d_model=64, d_ff=256, value_gate_width=32)
    model = build_model(config, seed=3)
    std = math.sqrt(2 / (5 * 64))
    for name in ("embedding", "prelude.0.attn.q", "core.1.mlp.up"):
        weight = model.get_parameter(f"{name}.weight")
        assert weight.std().item() == pytest.approx(std, rel=0.03), name
        gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
        assert torch.allclose(gram / gram[0, 0], torch.eye(gram.shape[0]), atol=1e-4), name
    for block in (*model.prelude, *model.core, *model.coda):
        assert block.attn.out.weight.count_nonzero() == 0
        assert block.mlp.down.weight.count_nonzero() == 0
    assert torch.allclose(model.injection.a_bar(), torch.full((64,), math.sqrt(1 / 5)))
    assert torch.equal(model.injection.B, torch.eye(64))
    assert torch.equal(model.readout.weight, torch.eye(64))
    assert model.value_embeddings["1"].weight.std().item() == pytest.approx(1, rel=0.1)
    state = model.initial_state(50, 12, generator=torch.Generator().manual_seed(0))
    assert state.abs().max() <= 3 * std
    assert state.std().item() == pytest.approx(std * 0.9866, rel=0.02)  # normal cut at 3 sigma


def test_weights_follow_the_seed_alone(tiny):
    a, b, c = (build_model(tiny(), seed=s) for s in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embedding.weight, c.embedding.weight)
    assert not any(torch.isnan(p).any() for p in a.parameters())


def test_initial_states_do_not_depend_on_the_batching(tiny):
    model = build_model(tiny(), seed=0)
    together = model.seeded_state([4, 5, 6], 7, seed=1, step=2)
    assert torch.equal(together[1:2], model.seeded_state([5], 7, seed=1, step=2))
    assert not torch.equal(together, model.seeded_state([4, 5, 6], 7, seed=1, step=3))


def test_instruments_report_the_last_change_of_the_state(tiny):
    config = tiny()
    model = build_model(config, seed=0).double()
    randomise(model)
    ids, state, draw = cases(config)
    found = model(ids, draw, state=state, instruments=True).instruments
    shorter = DepthDraw(no_grad=draw.no_grad * 0, grad=draw.total - 1)
    full = DepthDraw(no_grad=draw.no_grad * 0, grad=draw.total)
    states = {}
    for name, d in (("last", full), ("before", shorter)):
        rows = []
        for i in range(5):
            walk = model.states(ids[i : i + 1], state[i : i + 1])
            h = state[i : i + 1]
            for _ in range(int(d.grad[i])):
                h, _ = next(walk)
            rows.append(h)
        states[name] = torch.cat(rows)
    change = (states["last"] - states["before"]).square().mean().sqrt().item()
    assert found["residual_norm"] == pytest.approx(change, rel=1e-5)
    assert found["state_norm"] == pytest.approx(
        states["last"].square().mean().sqrt().item(), rel=1e-5
    )
    # two steps carry gradient in most sequences; after the last the states are the final ones
    assert [n for n in found if n.startswith("loop_norm")] == ["loop_norm_01", "loop_norm_02"]
    assert found["loop_norm_02"] == pytest.approx(found["state_norm"], rel=1e-5)
    assert found["spectral_radius"] == pytest.approx(model.injection.a_bar().max().item())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, ids: m(ids, 0), "n_loops is 0"),
        (lambda m, ids: m(ids + 100, 1), "token ids run from"),
        (lambda m, ids: m(torch.zeros(1, 99, dtype=torch.int64), 1), "context of 12"),
        (lambda m, ids: m(ids, 1, state=torch.zeros(1, 2, 3)), "state"),
        (
            lambda m, ids: m(
                ids,
                PoissonDepth(mean_recurrence=2, mean_backprop_depth=1).sample(9, seed=0, step=0),
            ),
            "depth draw is for 9 sequences",
        ),
    ],
)
def test_bad_input_is_named(tiny, call, words):
    model = build_model(tiny(), seed=0)
    with pytest.raises(ValueError, match=words):
        call(model, torch.zeros(2, 5, dtype=torch.int64))


def test_a_transformer_refuses_loops(tiny):
    model = build_model(tiny(injection="none"), seed=0)
    with pytest.raises(ValueError, match="runs once"):
        model(torch.zeros(2, 5, dtype=torch.int64), 2)


# ---- in bfloat16 -------------------------------------------------------------------------------


def test_steps_without_gradient_leave_every_matrix_of_the_core_its_gradient(tiny):
    """Up to torch 2.10 autocast kept the casts made without gradient, and the core got none."""
    model = build_model(tiny(), seed=0)
    randomise(model)
    ids, state, draw = cases(tiny())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, draw, state=state.float(), targets=ids.roll(-1, 1)).loss
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert draw.no_grad.any()
    assert missing == []
