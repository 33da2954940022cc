"""Depth-sorted execution equals the masked definition and does no more than the ideal work."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.masked import masked_forward
from parcae_core.depth import DepthDraw, PoissonDepth
from parcae_core.model.loop import Trace, advance, sort_by_depth
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
    for run in ("sorted", "masked"):
        model = build_model(config, seed=0).double()
        randomise(model)
        state = model.seeded_state(range(6), 8, seed=0).double()
        if run == "sorted":
            logits = model(ids, draw, state=state).logits
        else:
            logits = masked_forward(model, ids, draw, state)[0]
        logits.tanh().sum().backward()
        results.append((logits.detach(), {n: p.grad for n, p in model.named_parameters()}))
    (a, grads_a), (b, grads_b) = results
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


@given(st.lists(st.integers(0, 7), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_each_sequence_gets_exactly_its_own_steps(counts):
    counts = np.sort(np.array(counts))[::-1].copy()
    seen = []

    def step(h, m):
        seen.append(m)
        return h + 1

    trace = Trace()
    h, executed = advance(step, torch.zeros(len(counts), 1, 1), counts, trace=trace)
    assert h.flatten().tolist() == counts.tolist()
    assert executed == counts.sum() == sum(seen)
    assert trace.before.flatten().tolist() == [max(c - 1, 0) for c in counts]
    held = [np.sqrt(np.mean(np.minimum(counts, t) ** 2)) for t in range(1, counts.max() + 1)]
    assert [n.item() for n in trace.norms] == pytest.approx(held, rel=1e-6)


def test_a_draw_that_no_order_sorts_is_refused():
    draw = DepthDraw(no_grad=np.array([2, 0]), grad=np.array([1, 3]))
    with pytest.raises(ValueError, match="both to fall together"):
        sort_by_depth(draw)
