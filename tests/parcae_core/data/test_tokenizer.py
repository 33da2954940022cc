"""Tokenizers: exact round trips, the same ids as the tokenizers library, hostile text."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, pre_tokenizers, trainers

from parcae_core.data.bpe import (
    SEGMENT_CHARS,
    JsonTokenizer,
    load_json,
    segments,
    train_bpe,
    without_long_runs,
)
from parcae_core.data.sources import resolve
from parcae_core.data.tokenizer import ByteTokenizer, parse_tokenizer
from parcae_core.errors import UserError


@pytest.fixture(scope="module")
def texts():
    return list(resolve("python-stdlib").documents("val"))


@pytest.fixture(scope="module")
def bpe(texts):
    return train_bpe(texts[:8], 600)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
HOSTILE = [
    "",
    "<|bos|> and <|eos|><|pad|>",
    "it's WE'LL 1234567 naïve\r\n\r\n \t x  \n\n\ty",
    "日本語とemoji 👩‍👩‍👧 \u200b\ufeff",
]


def test_names():
    assert parse_tokenizer("bytes").vocab_size == 259
    assert parse_tokenizer("bpe-4096").vocab_size == 4096
    for bad in ("byte", "bpe-12", "bpe-04096", "bpe-", "bpe-99999999"):
        with pytest.raises(UserError, match=f"tokenizer '{bad}'"):
            parse_tokenizer(bad)
    with pytest.raises(UserError, match=r"missing.json'.*No such file"):
        parse_tokenizer("missing.json")


@given(text=ANY_TEXT)
def test_bytes_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@given(text=ANY_TEXT)
def test_bpe_round_trip_and_byte_counts(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode_bytes(ids) == text.encode()
    assert bpe.token_bytes()[ids].sum() == len(text.encode())
    assert (ids < bpe.bos_id).all()


def test_specials_are_last_and_stand_for_no_bytes(bpe):
    for tokenizer in (ByteTokenizer(), bpe):
        last = tokenizer.vocab_size
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (
            last - 3,
            last - 2,
            last - 1,
        )
        assert tokenizer.token_bytes().shape == (last,)
        assert tokenizer.token_bytes()[-3:].tolist() == [0, 0, 0]
        assert (tokenizer.token_bytes()[:-3] > 0).all()
        assert tokenizer.decode_bytes(np.array([last - 3, 97, last - 1])) == b"a"


def test_training_is_deterministic_and_shortens_text(texts, bpe):
    assert train_bpe(texts[:8], 600).to_json() == bpe.to_json()
    assert len(bpe.encode(texts[9])) < 0.6 * len(texts[9].encode())


def test_tokenizer_json_gives_the_same_ids_in_the_tokenizers_library(texts, bpe):
    hf = HfTokenizer.from_str(bpe.to_json())
    assert hf.get_vocab_size() == bpe.vocab_size
    assert [hf.token_to_id(s) for s in ("<|bos|>", "<|eos|>", "<|pad|>")] == [597, 598, 599]
    for text in [*texts, *HOSTILE[2:]]:
        assert hf.encode(text).ids == bpe.encode(text).tolist()
        assert hf.decode(hf.encode(text).ids) == text


def test_tokenizer_json_is_read_back(tmp_path, bpe, texts):
    path = tmp_path / "tokenizer.json"
    path.write_text(bpe.to_json(), encoding="utf-8")
    again = load_json(path)
    assert type(again) is type(bpe)
    assert again.to_json() == bpe.to_json()
    assert parse_tokenizer(str(path)).vocab_size == 600
    assert (again.encode(texts[0]) == bpe.encode(texts[0])).all()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, texts):
    """A tokenizer.json made by the tokenizers library in GPT-2's layout, specials first."""
    hf = HfTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    hf.train_from_iterator(texts[:4], trainer)
    path = tmp_path_factory.mktemp("foreign") / "tokenizer.json"
    hf.save(str(path))
    return path


def test_a_given_tokenizer_is_used_as_it_is(foreign, texts):
    tokenizer = load_json(foreign)
    assert isinstance(tokenizer, JsonTokenizer)
    assert tokenizer.bos_id == 0
    hf = HfTokenizer.from_file(str(foreign))
    for text in texts[:5] + HOSTILE:
        ids = tokenizer.encode(text)
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.encode(texts[0]).tolist() == hf.encode(texts[0]).ids


def test_text_that_spells_a_special_token_stays_text(foreign, bpe):
    given = load_json(foreign)
    for tokenizer, text in (
        (bpe, "<|bos|>"),
        (given, "<|endoftext|>"),
        (ByteTokenizer(), "<|bos|>"),
    ):
        assert tokenizer.bos_id not in tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["added_tokens"].clear(), "no beginning-of-text token"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "byte-level BPE is needed"),
        (lambda d: d.update(normalizer={"type": "NFC"}), "changes the text before encoding"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "changes the text"),
        (lambda d: d.pop("model"), "not a tokenizer.json"),
    ],
)
def test_a_tokenizer_that_cannot_be_scored_in_bits_per_byte_is_refused(
    tmp_path, foreign, change, message
):
    data = json.loads(foreign.read_text())
    change(data)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message):
        load_json(path)


def test_a_corpus_too_small_for_the_vocabulary_says_what_it_yields():
    with pytest.raises(UserError, match=r"'bpe-4096': the train split is too small.*use 'bpe-26"):
        train_bpe(["aaaa bbbb aaaa"], 4096)


@pytest.mark.parametrize("blanks", ["as written", "no line ends", "no spaces"])
def test_cutting_a_huge_document_does_not_change_its_ids(texts, bpe, blanks):
    text = "\n".join(texts)
    if blanks == "no line ends":
        text = text.replace("\n", " ")
    elif blanks == "no spaces":
        text = text.replace(" ", "")
    assert len(text) > 2 * SEGMENT_CHARS
    parts = list(segments(text))
    assert len(parts) > 2
    assert max(map(len, parts)) <= SEGMENT_CHARS
    assert bpe.encode(text).tolist() == HfTokenizer.from_str(bpe.to_json()).encode(text).ids


def test_endless_runs_do_not_enter_the_vocabulary():
    prose = "some words, some more words, some other words\n" * 3
    run = "a" * 5000 + " " * 5000 + "-" * 5000
    assert without_long_runs(prose) == prose
    assert without_long_runs(f"x{run}y").split() == ["y"]
    tokens = train_bpe([prose, run], 270).token_bytes()
    assert tokens.max() <= len(" words,")


@pytest.mark.parametrize("unit", ["a", " ", "\n", " \n", "é", "!"])
def test_huge_monotonous_documents_neither_crash_nor_lose_text(bpe, unit):
    # A run of a million blanks overflows the stack of the trainers' regex engine if left whole.
    text = unit * (1_100_000 // len(unit)) + "x"
    assert "".join(segments(text)) == text
    assert bpe.decode_bytes(bpe.encode(text)) == text.encode()
    train_bpe([text, "some words, some more words, some other words\n" * 3], 270)
