"""Reading: order as a function of the step, epochs, and damage found on opening."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcae_core.data.permutation import permute
from parcae_core.data.prepare import prepare
from parcae_core.data.reader import RowReader
from parcae_core.data.sources import resolve
from parcae_core.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus")
    for i in range(50):
        (corpus / f"{i}.txt").write_text(f"Document {i}. " + "It says a little. " * (i % 7 + 1))
    return prepare(resolve(str(corpus)), "bytes", 33, tmp_path_factory.mktemp("root"))


def copy(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


@given(n=st.integers(1, 400), key=st.text(max_size=5))
def test_permute_is_a_permutation(n, key):
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


def test_permutations_look_uniform():
    # 2,000 keys on 8 places: each (from, to) cell expects 250; chi-square over 64 cells has 49
    # degrees of freedom, and 85 is its 99.9 % point.
    n, keys = 8, 2000
    counts = np.zeros((n, n))
    for k in range(keys):
        counts[np.arange(n), permute(np.arange(n), n, str(k))] += 1
    expected = keys / n
    assert ((counts - expected) ** 2 / expected).sum() < 85


def test_neighbours_are_spread_over_a_large_range():
    n = 1_000_003
    gaps = np.abs(np.diff(permute(np.arange(20_000), n, "k")))
    # Uniform pairs are n / 3 apart on average; the mean of 20,000 has a deviation of 0.2 %.
    assert gaps.mean() == pytest.approx(n / 3, rel=0.02)


def test_order_is_frozen():
    # Results are compared across versions of this program: its order must not move.
    assert permute(np.arange(10), 10, "frozen").tolist() == FROZEN


FROZEN = [9, 7, 0, 6, 2, 5, 8, 4, 1, 3]


def test_an_epoch_holds_every_row_once_and_the_next_another_order(folder):
    reader = RowReader(folder, "train", data_seed=3)
    n = reader.n_rows
    first, second = reader.batch(0, n), reader.batch(1, n)
    stored = sorted(map(tuple, reader.rows(0, n).tolist()))
    assert sorted(map(tuple, first.ids.tolist())) == stored
    assert sorted(map(tuple, second.ids.tolist())) == stored
    assert (first.ids != second.ids).any()
    assert (first.epoch, second.epoch) == (0, 1)


def test_a_batch_is_a_window_of_the_endless_order_across_epochs(folder):
    reader = RowReader(folder, "train", data_seed=3)
    n = reader.n_rows
    endless = np.concatenate([reader.batch(0, n).ids, reader.batch(1, n).ids])
    size = n - 5
    straddling = RowReader(folder, "train", data_seed=3).batch(1, size)
    assert (straddling.ids == endless[size : 2 * size]).all()
    assert straddling.epoch == 1
    assert reader.batch(0, size).epoch == 0
    assert reader.batch(0, 2 * n).ids.shape == (2 * n, 33)


def test_the_seed_changes_the_order_and_nothing_else_does(folder):
    a, b = (RowReader(folder, "train", data_seed=s) for s in (0, 1))
    assert (a.batch(2, 8).ids != b.batch(2, 8).ids).any()
    assert (a.batch(2, 8).ids == RowReader(folder, "train", data_seed=0).batch(2, 8).ids).all()
    assert (a.rows(0, 4) == b.rows(0, 4)).all()


def test_ids_are_int64_with_bos_first_and_decode_to_the_text(folder):
    reader = RowReader(folder, "val", data_seed=0)
    ids = reader.rows(0, reader.n_rows)
    assert ids.dtype == np.int64
    assert (ids[:, 0] == 256).all()
    assert b"It says a little." in bytes(i for i in ids.ravel().tolist() if i < 256)
    assert reader.token_bytes.tolist() == [1] * 256 + [0] * 3


def test_asking_for_more_validation_rows_than_there_are(folder):
    reader = RowReader(folder, "val", data_seed=0)
    with pytest.raises(UserError, match=rf"rows 0 to {reader.n_rows + 1} .* has {reader.n_rows}"):
        reader.rows(0, reader.n_rows + 1)


def test_a_truncated_shard_is_named_with_both_sizes(folder, tmp_path):
    damaged = copy(folder, tmp_path / "d")
    size = (damaged / "train.bin").stat().st_size
    with (damaged / "train.bin").open("r+b") as file:
        file.truncate(size - 10)
    with pytest.raises(UserError, match=rf"train\.bin: truncated: {size - 10} .* {size} needed"):
        RowReader(damaged, "val", data_seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "format version 99"),
        (lambda m: m.pop("row_tokens"), "damaged manifest"),
        (lambda m: m.update(dtype="float16"), "damaged manifest"),
        (lambda m: m["splits"]["train"].update(rows=3), "longer than its manifest says"),
        (lambda m: m["tokenizer"].update(vocab_size=300), r"token_bytes.npy: shape \(259,\)"),
    ],
)
def test_a_manifest_that_does_not_match(folder, tmp_path, change, message):
    damaged = copy(folder, tmp_path / "d")
    manifest = json.loads((damaged / "manifest.json").read_text())
    change(manifest)
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=message):
        RowReader(damaged, "train", data_seed=0)


def test_missing_pieces_are_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"no manifest\.json"):
        RowReader(tmp_path, "train", data_seed=0)
    damaged = copy(folder, tmp_path / "d")
    (damaged / "token_bytes.npy").unlink()
    with pytest.raises(UserError, match=r"token_bytes\.npy: cannot read it"):
        RowReader(damaged, "train", data_seed=0)
    (damaged / "val.bin").unlink()
    with pytest.raises(UserError, match=r"val\.bin: missing"):
        RowReader(damaged, "train", data_seed=0)
    with pytest.raises(UserError, match="split 'test'"):
        RowReader(folder, "test", data_seed=0)
