"""Log-likelihoods of continuations: those of whole forwards, however texts are batched and cut."""

import pytest
import torch

from parcae_core.errors import UserError
from parcae_core.likelihood import log_likelihoods
from tests.support.trained import random_model

PAIRS = [([1, 2, 3], [4, 5]), ([7], [8]), ([1, 2, 3, 4, 5, 6], [3, 3, 2]), ([9, 9], [1])]


def alone(model, context, continuation, loops):
    ids = torch.tensor([context + continuation])
    state = model.seeded_state([0], ids.shape[1] - 1, seed=4)
    with torch.no_grad():
        logits = model(ids[:, :-1], loops, state=state).logits[0, len(context) - 1 :]
    log_p = logits.log_softmax(-1)
    nats = sum(log_p[i, token].item() for i, token in enumerate(continuation))
    return nats, log_p.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_one_pass_gives_the_likelihoods_of_a_forward_per_text_and_depth(tiny, batch):
    model = random_model(tiny())
    scores = log_likelihoods(model, PAIRS, loops=[1, 2, 5], seed=4, batch_sequences=batch)
    for (context, continuation), by_loops in zip(PAIRS, scores, strict=True):
        assert list(by_loops) == [1, 2, 5]
        for loops, (nats, likeliest) in by_loops.items():
            want, greedy = alone(model, context, continuation, loops)
            assert nats == pytest.approx(want, rel=1e-4)
            assert likeliest is greedy


def test_a_likeliest_continuation_is_said_to_be(tiny):
    model = random_model(tiny())
    state = model.seeded_state([0], 2, seed=4)
    with torch.no_grad():
        best = model(torch.tensor([[1, 2]]), 3, state=state).logits[0, -1].argmax().item()
    (scored,) = log_likelihoods(model, [([1, 2], [best])], loops=[3], seed=4)
    assert scored[3][1] is True


def test_nothing_is_certain(tiny):
    model = random_model(tiny())
    assert (
        log_likelihoods(model, [([1], []), ([1, 2], [])], loops=[2], seed=4)
        == [{2: (0.0, True)}] * 2
    )


def test_a_context_that_does_not_fit_is_cut_at_its_beginning(tiny):
    model = random_model(tiny())  # of 12 tokens
    long = [i % 19 for i in range(40)]
    cut, fits = (
        log_likelihoods(model, [(c, [3, 4])], loops=[2], seed=4) for c in (long, long[-11:])
    )
    assert cut == fits
    with pytest.raises(UserError, match="a continuation of 13 tokens"):
        log_likelihoods(model, [([1], [2] * 13)], loops=[2], seed=4)


def test_a_transformer_is_scored_once(tiny):
    model = random_model(tiny(injection="none", prelude_norm=False))
    scores = log_likelihoods(model, PAIRS, loops=[1], seed=4)
    log_p = model.transformer_states(torch.tensor([[7]])) @ model.head_weight.T
    assert scores[1][1][0] == pytest.approx(log_p.log_softmax(-1)[0, 0, 8].item(), rel=1e-4)
