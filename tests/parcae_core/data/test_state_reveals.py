"""The generated corpus: its text obeys its rules, is a function of its place, and its loss is known."""

import math

import numpy as np
import pytest

from parcae_core.data.bpe import load_prepared_tokenizer
from parcae_core.data.manifest import check_hashes, read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.reader import RowReader
from parcae_core.data.sources import resolve
from parcae_core.data.state_reveals import CHUNK_ROWS, StateReveals
from parcae_core.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(resolve("state-reveals"), "characters", 65, tmp_path_factory.mktemp("root"))


def test_every_revealed_state_is_where_the_actions_lead():
    corpus = StateReveals(states=6, actions=5, zipf=1.0, longest_gap=12)
    rules, alphabet = corpus.rules(), corpus.alphabet
    n_reveals = 0
    for row in corpus.chunk((0, 0), 0, 64)[:200]:
        state, gap = row[0], 0
        for symbol in row[1:]:
            if symbol < corpus.states:
                assert symbol == state
                assert 1 <= gap <= 12
                gap, n_reveals = 0, n_reveals + 1
            else:
                state, gap = rules[symbol - corpus.states, state], gap + 1
    assert alphabet == "ABCDEFabcde"
    assert n_reveals > 2_000


def test_gaps_and_actions_are_as_frequent_as_said():
    corpus = StateReveals(actions=4, zipf=1.0, longest_gap=8)
    ids = np.concatenate([corpus.chunk((0, 0), i, 400) for i in range(2)])
    labels = corpus.gaps(np.pad(ids, ((0, 0), (1, 0)), constant_values=99))
    found = np.bincount(labels[labels > 0], minlength=9)[1:] / (labels > 0).sum()
    assert found == pytest.approx(corpus.gap_shares(), rel=0.02)  # long rows cut off few gaps
    actions = np.bincount(ids[ids >= 5] - 5) / (ids >= 5).sum()
    assert actions == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.002)


def test_labels_are_the_gaps_that_states_end():
    corpus = StateReveals()
    text = "AcCbdBaDdcab"
    row = [99, *(corpus.alphabet.index(c) for c in text)]
    assert corpus.gaps(np.array([row])).tolist() == [[0, 0, 1, 0, 0, 2, 0, 1, 0, 0, 0, 0]]


def test_the_floor_is_the_entropy_of_the_text():
    """The mean surprise of a reader who knows everything, counted over real rows."""
    corpus = StateReveals(longest_gap=32)
    assert corpus.loss(64) == pytest.approx(1.5248, abs=5e-5)  # of the sample it replaces
    ids = np.concatenate([corpus.chunk((7,), i, 64) for i in range(4)])
    hazard, nats = corpus.hazard(), np.full(len(ids), math.log(5))
    since = np.zeros(len(ids), int)
    for t in range(1, 64):
        reveal = ids[:, t] < 5
        p = np.where(reveal, hazard[since], (1 - hazard[since]) / 4)
        nats -= np.log(p)
        since = np.where(reveal, 0, since + 1)
    assert nats.mean() / 64 == pytest.approx(corpus.loss(64), abs=2e-3)


def test_loss_falls_with_reach_to_the_floor():
    corpus = StateReveals()
    losses = [corpus.loss(64, reach) for reach in (0, 1, 2, 4, 8, 16, 32)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == corpus.loss(64)
    assert losses[1] == pytest.approx(1.6843, abs=5e-5)


def test_a_batch_is_a_function_of_its_step_and_rows_never_repeat(folder):
    reader = RowReader(folder, "train", data_seed=0)
    step = CHUNK_ROWS // 8 - 1  # the next batch lies in another chunk
    batch, after = reader.batch(step, 8), reader.batch(step + 1, 8)
    assert (RowReader(folder, "train", data_seed=0).batch(step, 8).ids == batch.ids).all()
    assert batch.epoch == 0
    assert batch.ids.shape == (8, 65)
    assert (batch.ids[:, 0] == 9).all()
    other = RowReader(folder, "train", data_seed=1).batch(step, 8)
    held = RowReader(folder, "val", data_seed=0).rows(0, 8)
    rows = [row.tobytes() for r in (batch.ids, after.ids, other.ids, held) for row in r]
    assert len(set(rows)) == 32
    assert reader.batch(10**9, 8).ids[:, 1:].max() == 8  # without end, and as quick there


def test_a_prepared_folder_says_what_it_is_and_holds_no_text(folder):
    manifest = read_manifest(folder)
    check_hashes(folder, manifest)
    assert manifest.generated.floor == StateReveals().loss(64)
    assert manifest.generated.loss_by_reach["8"] == StateReveals().loss(64, 8)
    assert manifest.tokenizer.vocab_size == 12
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10_000
    tokenizer = load_prepared_tokenizer(folder)
    row = RowReader(folder, "val", data_seed=0).rows(0, 1)[0]
    text = tokenizer.decode_bytes(row).decode()
    assert (tokenizer.encode(text) == row[1:]).all()
    assert len(text) == 64


def test_a_label_and_its_parameters_are_one_thing():
    corpus = StateReveals(actions=8, zipf=1.0, longest_gap=120)
    assert corpus.label == "state-reveals(actions=8, zipf=1, longest_gap=120)"
    assert StateReveals.named(corpus.label) == corpus
    assert StateReveals().label == "state-reveals" == resolve("state-reveals").name
    ids = {c.fingerprint for c in (corpus, StateReveals(), StateReveals(seed=1))}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("state-reveals(action=3)", "unknown parameter 'action'; did you mean 'actions'"),
        ("state-reveals(states=3, actions=6)", "actions is 6; it must be between 1 and 5"),
        ("state-reveals(tail=x)", "could not convert"),
        ("state-reveal", "did you mean 'state-reveals'"),
    ],
)
def test_a_wrong_corpus_is_refused_in_words(corpus, message):
    with pytest.raises(UserError) as caught:
        resolve(corpus)
    assert message in str(caught.value)


def test_only_its_own_characters_are_its_tokenizer(tmp_path):
    with pytest.raises(UserError, match="leave the tokenizer out"):
        prepare(resolve("state-reveals"), "bytes", 65, tmp_path)
    with pytest.raises(UserError, match="leave the tokenizer out"):
        prepare(resolve("python-stdlib"), "characters", 65, tmp_path)
