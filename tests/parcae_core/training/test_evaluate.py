"""One pass over the loop gives what separate forwards give."""

import math

import numpy as np
import pytest
import torch

from parcae_core.kernels.linear_cross_entropy import token_losses
from parcae_core.model.parcae import build_model
from parcae_core.training.distributed import Distributed
from parcae_core.training.evaluate import evaluate
from tests.parcae_core.conftest import randomise


class Rows:
    """Rows of random ids; ids 0 and 1 stand for special tokens, the others for 1 to 3 bytes."""

    def __init__(self, n_rows=11, row_tokens=9, vocab_size=19):
        rng = np.random.default_rng(0)
        self.table = rng.integers(0, vocab_size, (n_rows, row_tokens))
        self.n_rows = n_rows
        self.token_bytes = np.array([0, 0] + [1 + i % 3 for i in range(vocab_size - 2)])

    def rows(self, start, n):
        return self.table[start : start + n]

    def labels(self, rows):
        return None


@pytest.fixture
def model(tiny):
    model = build_model(tiny(), seed=0).double()
    randomise(model)
    return model


def test_equals_separate_forwards(model):
    reader = Rows()
    found = evaluate(model, reader, loops=[1, 2, 5, 9], n_sequences=10, batch_sequences=4, seed=3)
    ids = torch.from_numpy(reader.rows(0, 10))
    state = model.seeded_state(range(10), 8, seed=3).double()
    for row in found:
        logits = model(ids[:, :-1], row.n_loops, state=state).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        assert row.val_loss == pytest.approx(losses.mean().item(), rel=1e-12)
        n_bytes = torch.from_numpy(reader.token_bytes)[ids[:, 1:].flatten()]
        bits = losses[n_bytes > 0].sum().item() / math.log(2)
        assert row.val_bpb == pytest.approx(bits / n_bytes.sum().item(), rel=1e-12)
        assert row.n_tokens == 80
    assert [r.n_loops for r in found] == [1, 2, 5, 9]


def test_batching_changes_nothing(model):
    a, b = (
        evaluate(model, Rows(), loops=[1, 3], n_sequences=11, batch_sequences=n) for n in (3, 11)
    )
    assert [r.val_loss for r in a] == pytest.approx([r.val_loss for r in b], rel=1e-12)


class Share(Distributed):
    """One of several processes, run one after the other: what it gathers is kept."""

    def __init__(self, rank, kept, n=3):
        self.rank, self.n, self.kept, self.together = rank, n, kept, False

    def gather(self, value):
        self.kept.append(value)
        return self.kept


def test_processes_share_out_the_rows(model):
    whole = evaluate(model, Rows(), loops=[1, 3], n_sequences=11, batch_sequences=2)
    kept = []
    for rank in range(3):
        rows = evaluate(
            model, Rows(), loops=[1, 3], n_sequences=11, batch_sequences=2, group=Share(rank, kept)
        )
    assert [k[1][0, 0] for k in kept] == [4 * 8, 4 * 8, 3 * 8]  # tokens
    for a, b in zip(rows, whole, strict=True):
        assert (a.n_tokens, a.n_loops) == (b.n_tokens, b.n_loops)
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-14)
        assert a.val_bpb == pytest.approx(b.val_bpb, rel=1e-14)


def test_transformer_has_one_depth(tiny):
    model = build_model(tiny(injection="none", prelude_norm=False), seed=0)
    reader = Rows()
    (row,) = evaluate(model, reader, loops=[1], n_sequences=11)
    ids = torch.from_numpy(reader.table)
    with torch.no_grad():
        final = model.transformer_states(ids[:, :-1])
    want = token_losses(final, model.head_weight, ids[:, 1:]).mean().item()
    assert row.val_loss == pytest.approx(want, rel=1e-6)
    with pytest.raises(ValueError, match="runs once"):
        evaluate(model, reader, loops=[1, 2], n_sequences=4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loops": [0, 1], "n_sequences": 2}, "each >= 1"),
        ({"loops": [], "n_sequences": 2}, "at least one"),
        ({"loops": [1], "n_sequences": 12}, "has 11 rows"),
    ],
)
def test_bad_input_is_named(model, arguments, words):
    with pytest.raises(ValueError, match=words):
        evaluate(model, Rows(), **arguments)
