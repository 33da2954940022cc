"""Text after so many loops: the same logits as the whole forward, drawn as asked for."""

import numpy as np
import pytest
import torch

from parcae_core.data.tokenizer import ByteTokenizer
from parcae_core.errors import UserError
from parcae_core.generate import Decoder, Sampling, draw, sample
from parcae_core.model.parcae import build_model
from tests.support.trained import random_model

CASES = {
    "parcae": {},
    "grouped heads": {"n_kv_head": 1},
    "wide state": {"d_state": 24, "core_n_head": 3},
    "concat, swiglu, residual norms": {
        "injection": "concat",
        "mlp": "swiglu",
        "residual_norm": True,
    },
    "add, no readout, own head": {"injection": "add", "readout": False, "tie_embeddings": False},
    "zero-order hold": {"injection": "diagonal-zoh"},
    "transformer": {"injection": "none", "prelude_norm": False},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_reading_token_by_token_gives_the_logits_of_the_whole_forward(tiny, changes):
    model = random_model(tiny(**changes))
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    loops = 1 if model.config.is_transformer else 3
    decoder = Decoder(model, loops, seed=5)
    read = [decoder.read(ids[:4]), *(decoder.read([i]) for i in ids[4:])]
    state = model.seeded_state([0], model.config.context, seed=5)[:, : len(ids)]
    with torch.no_grad():
        whole = model(torch.tensor([ids]), loops, state=state).logits[0, 3:]
    torch.testing.assert_close(torch.stack(read), whole, rtol=1e-4, atol=1e-5)


def test_the_initial_state_of_a_text_is_the_beginning_of_that_of_a_longer_one(tiny):
    model = build_model(tiny(), seed=0)
    short, long = (model.seeded_state([0], n, seed=2) for n in (5, 12))
    assert torch.equal(short, long[:, :5])


def test_a_token_leaves_its_loop_when_its_state_has_settled(tiny):
    model = random_model(tiny())
    whole, cut = Decoder(model, 6, seed=0), Decoder(model, 6, seed=0, stop_below=10.0)
    assert torch.equal(whole.read([1, 2, 3]), cut.read([1, 2, 3]))  # read together: never cut
    assert len(cut.changes) == 6
    settled, unsettled = cut.read([4]), whole.read([4])
    assert cut.changes == whole.changes[:1]
    assert not torch.equal(settled, unsettled)
    assert torch.isfinite(cut.read([5])).all()  # it attends to the token that was cut short


def test_a_bound_that_nothing_meets_changes_no_text_and_saves_nothing(tiny):
    model = random_model(tiny(vocab_size=259, context=40))
    common = {"loops": [4], "state_seed": 0}
    plain, bounded = (
        sample(model, ByteTokenizer(), "abc", sampling=Sampling(n_tokens=8, stop_below=b), **common)
        for b in (None, 1e-12)
    )
    assert plain == bounded
    assert plain[0].saved == 0
    (early,) = sample(
        model, ByteTokenizer(), "abc", sampling=Sampling(n_tokens=8, stop_below=1e3), **common
    )
    assert early.loops_used[:3] == (4, 1, 1)
    assert early.saved == pytest.approx(
        1 - (4 + len(early.loops_used) - 1) / (4 * len(early.loops_used))
    )


def test_columns_share_their_draws_and_repeat(tiny):
    model = random_model(tiny(vocab_size=259, context=40))
    sampling = Sampling(n_tokens=12, seed=3)
    columns = sample(
        model, ByteTokenizer(), "abc", loops=[1, 2, 8], sampling=sampling, state_seed=0
    )
    assert [c.n_loops for c in columns] == [1, 2, 8]
    assert [len(c.changes) for c in columns] == [1, 2, 8]
    again = sample(model, ByteTokenizer(), "abc", loops=[2], sampling=sampling, state_seed=0)
    assert again == columns[1:2]


def test_draws_follow_temperature_and_top_p():
    logits = np.log(np.array([0.1, 0.6, 0.3]))
    places = (np.arange(1000) + 0.5) / 1000

    def shares(**how):
        drawn = [draw(logits, u, Sampling(**how)) for u in places]
        return (np.bincount(drawn, minlength=3) / len(drawn)).tolist()

    assert shares(temperature=1.0) == pytest.approx([0.1, 0.6, 0.3], abs=1e-3)
    assert shares(temperature=0) == [0, 1, 0]
    assert shares(temperature=1.0, top_p=0.8) == pytest.approx([0, 2 / 3, 1 / 3], abs=1e-3)
    assert shares(temperature=1.0, top_p=0.5) == [0, 1, 0]
    flat = np.sqrt([0.1, 0.6, 0.3])
    assert shares(temperature=2.0) == pytest.approx((flat / flat.sum()).tolist(), abs=1e-3)
    assert draw(logits, np.nextafter(1, 0), Sampling(temperature=1.0, top_p=0.85)) == 2


@pytest.mark.parametrize(
    ("prompt", "loops", "n_tokens", "words"),
    [
        ("", [1], 4, "the prompt is empty"),
        ("a\udce9", [1], 4, "not UTF-8"),
        ("abc", [0], 4, "0 loops asked for; this model needs 1"),
        ("abc", [1], 10, "ask for 9 tokens or fewer"),
        ("abcdefghijklmn", [1], 1, "shorten the prompt"),
    ],
)
def test_bad_input_is_one_sentence(tiny, prompt, loops, n_tokens, words):
    model = build_model(tiny(vocab_size=259), seed=0)
    with pytest.raises(UserError, match=words):
        sample(
            model,
            ByteTokenizer(),
            prompt,
            loops=loops,
            sampling=Sampling(n_tokens=n_tokens),
            state_seed=0,
        )


@pytest.mark.parametrize(
    "wrong", [{"n_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"stop_below": 0}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=r"is|asked for"):
        Sampling(**wrong)


def test_a_diverged_model_is_named(tiny):
    model = random_model(tiny(vocab_size=259))
    with torch.no_grad():
        model.norm_final.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="no finite logits after 2 loops"):
        sample(
            model,
            ByteTokenizer(),
            "a",
            loops=[2],
            sampling=Sampling(n_tokens=2),
            state_seed=0,
        )
