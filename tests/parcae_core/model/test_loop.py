"""Depth-sorted execution equals the masked definition and does no more than the ideal work."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cases import Case, static_steps
from benchmarks.masked import masked_forward
from parcae_core.depth import DepthDraw, PoissonDepth
from parcae_core.model.loop import Trace, advance, advance_static, sort_by_depth
from parcae_core.model.parcae import build_model
from tests.parcae_core.conftest import randomise


@pytest.mark.parametrize("injection", ["diagonal", "diagonal-zoh", "concat", "add"])
@pytest.mark.parametrize("split", ["truncate", "additive"])
def test_equals_the_masked_definition_in_outputs_and_every_gradient(tiny, injection, split):
    config = tiny(injection=injection)
    scheme = PoissonDepth(mean_recurrence=4, mean_backprop_depth=2, split=split)
    draw = scheme.sample(6, seed=0, step=3)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (6, 8), generator=generator)
    results = []
    for run in ("sorted", "static", "masked"):
        model = build_model(config, seed=0).double()
        randomise(model)
        state = model.seeded_state(range(6), 8, seed=0).double()
        model.static_shapes = run == "static"
        if run != "masked":
            logits = model(ids, draw, state=state).logits
        else:
            logits = masked_forward(model, ids, draw, state)[0]
        logits.tanh().sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    *ours, (b, grads_b) = results
    for a, grads_a in ours:
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
        for name, grad in grads_a.items():
            assert torch.allclose(grad, grads_b[name], rtol=1e-9, atol=1e-9), name


def test_executed_steps_are_the_ideal_ones(tiny):
    config = tiny()
    model = build_model(config, seed=0)
    scheme = PoissonDepth(mean_recurrence=8, mean_backprop_depth=4)
    executed = ideal = masked = 0
    for step in range(5):
        draw = scheme.sample(16, seed=0, step=step)
        ids = torch.zeros(16, 3, dtype=torch.int64)
        with torch.no_grad():
            executed += model(ids, draw).core_sequence_steps
            masked += masked_forward(model, ids, draw, torch.zeros(16, 3, 16))[2]
        ideal += int(draw.total.sum())
    assert executed == ideal
    assert masked / ideal > 1.4  # what the masked definition wastes at this batch


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=19),
    st.sampled_from(["sorted", "static", "static with gradient"]),
)
@settings(max_examples=120, deadline=None)
def test_each_sequence_gets_exactly_its_own_steps(counts, way):
    counts = np.sort(np.array(counts))[::-1].copy()
    seen = []

    def step(h, m, active=None):
        seen.append(m)
        return h + (1 if active is None else active[:, None, None])

    trace = Trace()
    run = advance if way == "sorted" else advance_static
    with torch.set_grad_enabled(way == "static with gradient"):
        h, executed = run(step, torch.zeros(len(counts), 1, 1), counts, trace=trace)
    assert h.flatten().tolist() == counts.tolist()
    assert executed == sum(seen) >= counts.sum()
    if way == "sorted":
        assert executed == counts.sum()
    elif way == "static with gradient":
        assert set(seen) <= {len(counts)}
    else:  # at most eight sizes, each at most an eighth of the batch too wide
        unit = -(-len(counts) // 8)
        assert all(m % unit == 0 or m == len(counts) for m in seen)
        assert executed < counts.sum() + unit * max(len(seen), 1)
    assert trace.before.flatten().tolist() == [max(c - 1, 0) for c in counts]
    held = [np.sqrt(np.mean(np.minimum(counts, t) ** 2)) for t in range(1, counts.max() + 1)]
    assert [n.item() for n in trace.norms] == pytest.approx(held, rel=1e-6)


def test_a_held_sequence_passes_its_gradient_on_unchanged():
    """As the masked definition does: nothing of the step that ran along reaches it."""
    h = torch.tensor([2.0, 3.0]).view(2, 1, 1).requires_grad_()

    def step(h, m, active):
        return torch.where(active[:, None, None], h * h, h)

    out, _ = advance_static(step, h, np.array([2, 0]))
    assert out.flatten().tolist() == [16.0, 3.0]
    (grad,) = torch.autograd.grad(out.sum(), h)
    assert grad.flatten().tolist() == [4 * 2.0**3, 1.0]


# mu_rec, of the steps with gradient run in vain and of all FLOPs of a step at the 140m preset
@pytest.mark.parametrize(("mean", "with_grad", "of_step"), [(4, 0.048, 0.05), (8, 0.014, 0.03)])
def test_static_shapes_waste_few_percent(mean, with_grad, of_step):
    """On our own sampler, 32 sequences, mu_bwd = mu_rec / 2."""
    scheme = PoissonDepth(mean_recurrence=mean, mean_backprop_depth=mean // 2)
    case = Case(
        preset="140m", batch=32, seq_len=2048, device=torch.device("cpu"), precision="bfloat16"
    )
    draws = [scheme.sample(32, seed=0, step=s) for s in range(400)]
    run = np.sum([static_steps(d) for d in draws], axis=0)
    drawn = np.sum([[d.no_grad.sum(), d.grad.sum()] for d in draws], axis=0)
    assert run[1] / drawn[1] - 1 == pytest.approx(with_grad, abs=0.002)
    # a step without gradient costs a third of one with it, and each is affine in the step's FLOPs
    one = DepthDraw(no_grad=np.array([1]), grad=np.array([1]))
    more = DepthDraw(no_grad=np.array([2]), grad=np.array([1]))
    deeper = DepthDraw(no_grad=np.array([1]), grad=np.array([2]))
    base, no_grad, grad = (case.step_flops(d) for d in (one, more, deeper))
    spent = sum(case.step_flops(d) for d in draws)
    extra = (run - drawn) @ np.array([no_grad - base, grad - base])
    assert extra / spent < of_step


def test_a_draw_that_no_order_sorts_is_refused():
    draw = DepthDraw(no_grad=np.array([2, 0]), grad=np.array([1, 3]))
    with pytest.raises(ValueError, match="both to fall together"):
        sort_by_depth(draw)
