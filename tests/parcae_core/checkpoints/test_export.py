"""What is exported computes what we compute: by the real transformers library, and read back by us."""

import json
from pathlib import Path

import pytest
import torch

from parcae_core.checkpoints.export import (
    export_published,
    export_transformers,
    transformers_config,
)
from parcae_core.checkpoints.load import TrainedModel, load_model
from parcae_core.checkpoints.text import load_tokenizer
from parcae_core.data.bpe import standalone_json, train_bpe
from parcae_core.data.state_reveals import StateReveals
from parcae_core.data.tokenizer import ByteTokenizer, CharacterTokenizer
from parcae_core.errors import UserError
from parcae_core.generate import Sampling, sample
from tests.parcae_core.test_generate import CASES
from tests.support.trained import random_model

SEED = 7


def trained(config) -> TrainedModel:
    return TrainedModel(model=random_model(config), mean_recurrence=3, seed=SEED, origin="a test")


def ours(model, ids, loops):
    """Logits with the initial state of position 0, 1, ... in every row."""
    state = model.seeded_state([0], model.config.context, seed=SEED)
    state = state[:, : ids.shape[1]].expand(len(ids), -1, -1).to(model.embedding.weight.dtype)
    with torch.no_grad():
        return model(ids, loops, state=state).logits


@pytest.fixture(scope="module")
def modeling():
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    from parcae_core.checkpoints import modeling_parcae

    return modeling_parcae


# The library takes 5 s to import, so that few of its tests belong to the fast suite
FAST = ("wide state", "transformer")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(changes, id=name, marks=[] if name in FAST else pytest.mark.slow)
        for name, changes in CASES.items()
    ],
)
def test_the_modelling_file_computes_our_logits_for_every_kind_of_model(tiny, modeling, changes):
    source = trained(tiny(**changes))
    source.model.double()  # so that only another formula can differ, and not the order of sums
    config = modeling.ParcaeConfig(**transformers_config(source.model.config), state_key=_key())
    theirs = modeling.ParcaeForCausalLM(config).double().eval()
    theirs.load_state_dict(dict(source.model.named_parameters()), strict=True)
    ids = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    loops = 1 if source.model.config.is_transformer else 4
    with torch.no_grad():
        whole = theirs(ids, num_loops=loops)
        begun = theirs(ids[:, :3], num_loops=loops, use_cache=True)
        rest = theirs(ids[:, 3:], num_loops=loops, past_key_values=_cache(begun))
    want = ours(source.model, ids, loops)
    torch.testing.assert_close(whole.logits, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rest.logits, want[:, 3:], rtol=1e-9, atol=1e-9)


def test_padding_on_the_left_changes_nothing(tiny, modeling):
    source = trained(tiny())
    config = modeling.ParcaeConfig(**transformers_config(source.model.config), state_key=_key())
    theirs = modeling.ParcaeForCausalLM(config).eval()
    theirs.load_state_dict(dict(source.model.named_parameters()))
    ids = torch.tensor([[0, 0, 3, 1, 4]])
    with torch.no_grad():
        padded = theirs(ids, attention_mask=torch.tensor([[0, 0, 1, 1, 1]]), num_loops=2)
    want = ours(source.model, ids[:, 2:], 2)
    torch.testing.assert_close(padded.logits[:, 2:], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="num_loops is 0"):
        theirs(ids, num_loops=0)


@pytest.mark.slow
def test_transformers_loads_the_folder_and_generates_what_we_sample(tiny, tmp_path, modeling):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = trained(tiny(vocab_size=264, context=48))
    export_transformers(source, ByteTokenizer(), tmp_path / "out", n_loops=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    batch = tokenizer("The sea é", return_tensors="pt")
    assert batch.input_ids.tolist() == [[256, *"The sea é".encode()]]
    with torch.no_grad():
        got = model(batch.input_ids).logits
    torch.testing.assert_close(got, ours(source.model, batch.input_ids, 3), rtol=1e-4, atol=1e-5)
    assert model.generation_config.num_loops == 3
    for loops, asked in ((3, {}), (5, {"num_loops": 5})):
        (want,) = sample(
            source.model,
            ByteTokenizer(),
            "The sea é",
            loops=[loops],
            sampling=Sampling(n_tokens=16, temperature=0),
            state_seed=SEED,
        )
        for use_cache in (True, False):
            out = model.generate(
                **batch, max_new_tokens=len(want.ids), use_cache=use_cache, **asked
            )
            assert tuple(out[0, batch.input_ids.shape[1] :].tolist()) == want.ids


@pytest.mark.slow
def test_texts_of_different_length_are_generated_together_as_alone(tiny, tmp_path, modeling):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export_transformers(
        trained(tiny(vocab_size=264, context=48)), ByteTokenizer(), tmp_path / "out", n_loops=3
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(
        tmp_path / "out", trust_remote_code=True, padding_side="left"
    )
    prompts = ["The sea and the whale", "A ship"]
    how = {"max_new_tokens": 8, "min_new_tokens": 8}
    both = tokenizer(prompts, return_tensors="pt", padding=True)
    assert both.attention_mask.sum(1).tolist() == [22, 7]
    together = model.generate(**both, **how)[:, -8:]
    for prompt, row in zip(prompts, together, strict=True):
        alone = model.generate(**tokenizer(prompt, return_tensors="pt"), **how)[0, -8:]
        assert row.tolist() == alone.tolist()
    beams = model.generate(**both, **how, num_beams=2)
    assert beams.shape == (2, both.input_ids.shape[1] + 8)


def test_the_folder_says_everything_and_appears_whole(tiny, tmp_path):
    source = trained(tiny(vocab_size=259))
    export_transformers(source, ByteTokenizer(), tmp_path / "out", n_loops=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "modeling_parcae.py",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {
        "num_loops": 3, "bos_token_id": 256, "eos_token_id": [256, 257], "pad_token_id": 258,
    }  # fmt: skip
    with pytest.raises(UserError, match="is there already and not empty"):
        export_transformers(source, ByteTokenizer(), tmp_path / "out", n_loops=3)
    with pytest.raises(UserError, match="0 loops asked for"):
        export_transformers(source, ByteTokenizer(), tmp_path / "new", n_loops=0)
    assert not (tmp_path / "new").exists()


def test_the_modelling_file_needs_nothing_of_ours():
    source = (Path(export_transformers.__code__.co_filename)).with_name("modeling_parcae.py")
    assert "parcae_core" not in source.read_text()


@pytest.mark.parametrize("name", ["parcae", "concat, swiglu", "transformer"])
def test_the_published_format_comes_back_as_the_same_model(tiny, tmp_path, name):
    changes = {"concat, swiglu": {"injection": "concat", "mlp": "swiglu", "readout": True}}
    source = trained(
        tiny(
            vocab_size=259,
            d_model=32,
            value_gate_width=32,
            **changes.get(name, CASES.get(name, {})),
        )
    )
    export_published(source, ByteTokenizer(), tmp_path / "out")
    back = load_model(tmp_path / "out")
    assert back.mean_recurrence == (1 if source.model.config.is_transformer else 3)
    for (n, p), (m, q) in zip(
        source.model.named_parameters(), back.model.named_parameters(), strict=True
    ):
        assert n == m or source.model.config.is_transformer
        assert torch.equal(p, q)
    tokenizer = load_tokenizer(tmp_path / "out", back)
    assert tokenizer.encode("a é").tolist() == [97, 32, 195, 169]
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (256, 259)


def test_what_the_published_format_has_not_is_refused_and_nothing_is_written(tiny, tmp_path):
    with pytest.raises(UserError, match="does not exist in the published format"):
        export_published(
            trained(tiny(d_model=32, value_gate_width=32, residual_norm=True)),
            ByteTokenizer(),
            tmp_path / "out",
        )
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_file_gives_our_ids_with_the_token_that_begins_a_text():
    from tokenizers import Tokenizer as HfTokenizer

    text = "ABba dAc"
    alphabet = StateReveals().alphabet
    cases = [
        (ByteTokenizer(), "héllo <|bos|>\n"),
        (train_bpe(["the sea and the ship and the sea"] * 4, 264), "the sea, the ship"),
        (CharacterTokenizer(alphabet), "".join(c for c in text if c in alphabet)),
    ]
    for tokenizer, words in cases:
        theirs = HfTokenizer.from_str(json.dumps(standalone_json(tokenizer)))
        theirs.encode_special_tokens = True
        ids = theirs.encode(words).ids
        assert ids == [tokenizer.bos_id, *tokenizer.encode(words).tolist()]
        assert theirs.decode(ids) == words


def _key():
    from parcae_core.model.initial import state_key

    return state_key(SEED, 0, 0)


def _cache(output):
    return output["cache"] if "cache" in output else output["past_key_values"]
